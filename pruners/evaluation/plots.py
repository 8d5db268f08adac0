"""Plots of an artefact: loss against cost, and the width of each layer."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pruners.artefact.folder import Artefact
from pruners.evaluation.pareto import pareto_front
from pruners.support.files import replace_file
from pruners.variant import BASE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE = (7.0, 4.5)


def draw_plots(artefact: Artefact, folder: Path) -> list[str]:
    """Write a PNG file for each kind of measurement into `folder`, and return their names."""
    # Imported here, as it is slow to load and a server does not need it.
    import matplotlib

    matplotlib.use("Agg")
    table = artefact.table
    losses = {name: quality.kl for name, quality in table.quality.items()}
    names = []
    if losses:
        full = table.cost[BASE].flops
        names += [
            _scatter(
                {n: (table.cost[n].bytes_read, loss) for n, loss in losses.items()},
                "share of the base's bytes read for a token",
                folder / "loss-bytes.png",
            ),
            _scatter(
                {n: (table.cost[n].flops / full, loss) for n, loss in losses.items()},
                "share of the base's arithmetic for a token",
                folder / "loss-flops.png",
            ),
        ]
    if table.reader_cost:
        names.insert(0, _reading(artefact, folder / "loss-reading.png"))
    for machine in list(table.speed.values())[:1]:
        seconds = {name: next(iter(sizes.values())) for name, sizes in machine["decode"].items()}
        names.append(
            _scatter(
                {n: (seconds[n] / seconds[BASE], loss) for n, loss in losses.items()},
                "time of a decode step over the base's, one stream",
                folder / "loss-time.png",
            )
        )
    return [*names, _widths(artefact, folder / "widths.png")]


def _scatter(points: Mapping[str, tuple[float, float]], label: str, path: Path) -> str:
    from matplotlib import pyplot

    points = {BASE: (1.0, 0.0), **points}
    figure, axes = pyplot.subplots(figsize=_SIZE)
    front = pareto_front(points)
    axes.plot(*zip(*(points[name] for name in front), strict=True), "-", color="#4878a8", zorder=1)
    for name, (cost, loss) in points.items():
        axes.plot(cost, loss, "o", color="#4878a8" if name in front else "#bbbbbb", zorder=2)
        axes.annotate(name, (cost, loss), (5, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel(label)
    axes.set_ylabel("KL to the base, nats per token")
    axes.set_title("The line is the Pareto front", fontsize=9)
    axes.grid(alpha=0.3)
    return _write(figure, path)


def _reading(artefact: Artefact, path: Path) -> str:
    """Plot loss against compute: readers while a prompt is read, variants while they write."""
    from matplotlib import pyplot

    table = artefact.table
    figure, axes = pyplot.subplots(figsize=_SIZE)
    readers = {
        name: (cost.share, table.reader_quality[name]["all"])
        for name, cost in table.reader_cost.items()
        if name in table.reader_quality
    }
    writers = {
        n: (table.cost[n].flops / table.cost[BASE].flops, q.kl) for n, q in table.quality.items()
    }
    for name, (share, loss) in readers.items():
        axes.errorbar(share, loss.kl, loss.half_width, fmt="o", color="#4878a8", capsize=3)
        axes.annotate(name, (share, loss.kl), (5, 4), textcoords="offset points", fontsize=7)
    for name, (share, kl) in writers.items():
        axes.plot(share, kl, "s", color="#bbbbbb")
        axes.annotate(name, (share, kl), (5, 4), textcoords="offset points", fontsize=7)
    axes.set_xlabel("share of the base's arithmetic for a token: of the prompt, or of all")
    axes.set_ylabel("KL to the base, nats per token")
    axes.set_title(
        "Readers on answers to prompts (round, 95 % interval), variants on text", fontsize=9
    )
    axes.grid(alpha=0.3)
    return _write(figure, path)


def _widths(artefact: Artefact, path: Path) -> str:
    from matplotlib import pyplot

    shape = artefact.shape
    figure, axes = pyplot.subplots(1, 2, figsize=(2 * _SIZE[0], _SIZE[1]), sharey=True)
    labels = [spec.name for spec in artefact.variants]
    for panel, title, full, rows in (
        (axes[0], "KV groups kept", shape.kv_groups, [v.kv_groups for v in artefact.variants]),
        (axes[1], "FFN neurons kept", shape.ffn, [v.ffn for v in artefact.variants]),
    ):
        shares = [[width / full for width in row] for row in rows]
        image = panel.imshow(shares, aspect="auto", vmin=0, vmax=1, cmap="viridis")
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("layer")
        panel.set_yticks(range(len(labels)), labels, fontsize=7)
    figure.colorbar(image, ax=axes, label="share of the base")
    return _write(figure, path)


def _write(figure: "Figure", path: Path) -> str:
    from matplotlib import pyplot

    replace_file(path, partial(figure.savefig, dpi=110, bbox_inches="tight", format="png"))
    pyplot.close(figure)
    return path.name
