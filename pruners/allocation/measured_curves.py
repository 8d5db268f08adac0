"""How much the model suffers from a cut: the KL to the base with one block cut at a time."""

import math
from collections.abc import Mapping, Sequence

import torch
from rich.progress import Progress

from pruners.allocation.base import MULTIPLE
from pruners.allocation.curves import Curve
from pruners.architecture import LocatedModel, Shape
from pruners.calibration.layer_probe import LayerProbe
from pruners.correction import Correction
from pruners.data.rows import make_batches
from pruners.evaluation.divergence import DivergenceTotals, add_divergences
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import track
from pruners.variant import PARTS, Block, Part, base_spec

LEVELS = 8
"""FFN widths to choose from are multiples of an eighth."""
_MIN_ERROR = 1e-9  # so that logarithms are finite


def ffn_levels(shape: Shape, multiple: int = MULTIPLE) -> tuple[int, ...]:
    """Return FFN widths to choose from, falling from the full one to 0.

    They are about eighths of the full width, rounded to `multiple`.
    """
    rough = (shape.ffn * level / LEVELS for level in range(1, LEVELS))
    middle = {max(multiple, round(width / multiple) * multiple) for width in rough}
    return tuple(sorted({shape.ffn, 0} | {w for w in middle if w < shape.ffn}, reverse=True))


def kv_levels(shape: Shape) -> tuple[int, ...]:
    """Return every number of KV groups that a layer can keep, falling from the full one to 0."""
    return tuple(range(shape.kv_groups, -1, -1)) if shape.cuts_groups else (shape.kv_groups, 0)


@torch.no_grad()
def measure_curves(
    located: LocatedModel,
    order: Order,
    rows: Sequence[torch.Tensor],
    corrections: Mapping[tuple[Block, int], Correction],
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> list[Curve]:
    """Return the KL to the base, nats per token, of each block at each width, all others whole.

    `rows` are 1-D token ids, ragged. A block at a width is corrected by `corrections[block,
    width]`, if there is one. Some FFN widths are measured and the others interpolated. Each layer
    is noted in the checkpoint as soon as it is measured.
    """
    probes = [LayerProbe(located, batch) for batch in make_batches(rows)]
    shape = located.shape
    levels: dict[Part, tuple[int, ...]] = {"attention": kv_levels(shape), "mlp": ffn_levels(shape)}
    curves: list[Curve] = []
    for layer in track(range(shape.layers), "Measuring each layer", progress):
        cuts = [
            (Block(layer, part), width)
            for part in PARTS
            for width in (levels[part][1:] if part == "attention" else _sparse(levels[part]))
        ]

        def measure(cuts: Sequence[tuple[Block, int]] = cuts) -> list[float]:
            return _measure_kl(located, order, probes, corrections, cuts)

        errors = dict(
            zip(cuts, checkpoint.get_or_compute(f"curves of {layer}", measure), strict=True)
        )
        for part, widths in levels.items():
            known = {width: error for (block, width), error in errors.items() if block.part == part}
            points = _interpolate(widths, {widths[0]: 0.0, **known})
            curves.append(Curve(layer, part, widths, points))
    return curves


def _sparse(widths: Sequence[int]) -> tuple[int, ...]:
    """Return the widths with 1/4, 5/8 and all removed; between them, errors follow power laws."""
    return tuple(dict.fromkeys((*widths[2:-1:3], widths[-1])))


def _measure_kl(
    located: LocatedModel,
    order: Order,
    probes: Sequence[LayerProbe],
    corrections: Mapping[tuple[Block, int], Correction],
    cuts: Sequence[tuple[Block, int]],
) -> list[float]:
    """Return the KL with each cut (block, width) alone; the base is computed once for all."""
    totals = [DivergenceTotals() for _ in cuts]
    for probe in probes:
        finals = []
        for cut in cuts:
            block, width = cut
            spec = base_spec(located.shape).with_width(block, width)
            correction = {block: corrections[cut]} if cut in corrections else {}
            with apply_mask(located, spec, order, correction):
                finals.append(probe.final_hidden_from(block.layer))
        add_divergences(located.head, probe.base, finals, probe.targets, totals)
    return [total.mean_kl for total in totals]


def _interpolate(widths: Sequence[int], known: Mapping[int, float]) -> tuple[float, ...]:
    """Return an error for each width: power laws of the removed units through `known`, rising.

    Errors grow like a power. A straight line would give all steps between two known widths the
    same price, so that only known widths would ever be chosen.
    """
    full = widths[0]
    points = sorted((full - width, max(error, _MIN_ERROR)) for width, error in known.items())[1:]
    errors = [0.0]
    for width in widths[1:]:
        gone = full - width
        upper = next(i for i, (removed, _) in enumerate(points) if removed >= gone)
        (x1, y1), (x2, y2) = points[max(0, upper - 1)], points[min(max(1, upper), len(points) - 1)]
        power = math.log(y2 / y1) / math.log(x2 / x1) if x2 > x1 else 1.0
        errors.append(max(errors[-1], y1 * (gone / x1) ** power))
    return tuple(errors)
