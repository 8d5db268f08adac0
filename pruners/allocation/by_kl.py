"""How much the model minds a cut: the KL to the base with one block cut at a time."""

import math
from collections.abc import Mapping, Sequence

import torch
from rich.progress import Progress

from pruners.allocation.curves import Curve
from pruners.architecture import LocatedModel, Shape
from pruners.calibration.layer_probe import LayerProbe
from pruners.correction import Correction
from pruners.data.rows import make_batches
from pruners.evaluation.divergence import Tally, compare
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import track
from pruners.variant import PARTS, Block, Part, base_spec

LEVELS = 8
"""Neurons are cut in eighths."""
_LEAST = 1e-9
Library = Mapping[tuple[Block, int], Correction]
"""What to correct a block with, by its width."""


def ffn_levels(shape: Shape, multiple: int = 32) -> tuple[int, ...]:
    """Widths to choose from, falling from the full one to 0, in multiples of `multiple`."""
    rough = (shape.ffn * level / LEVELS for level in range(1, LEVELS))
    middle = {max(multiple, round(width / multiple) * multiple) for width in rough}
    return tuple(sorted({shape.ffn, 0} | {w for w in middle if w < shape.ffn}, reverse=True))


def kv_levels(shape: Shape) -> tuple[int, ...]:
    """Every number of KV groups, falling to 0."""
    return tuple(range(shape.kv_groups, -1, -1))


@torch.no_grad()
def measured(
    located: LocatedModel,
    order: Order,
    rows: Sequence[torch.Tensor],
    library: Library,
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> list[Curve]:
    """KL to the base, nats per token, of each block at each of its levels, all others whole.

    What the score of a layer cannot say. Each width is corrected as `library` has it. Most FFN
    levels are interpolated; what was measured of a layer is noted in the checkpoint.
    """
    probes = [LayerProbe(located, batch) for batch in make_batches(rows)]
    shape = located.shape
    levels: dict[Part, tuple[int, ...]] = {"attention": kv_levels(shape), "mlp": ffn_levels(shape)}
    curves: list[Curve] = []
    for layer in track(range(shape.layers), "Measuring each layer", progress):
        tried = [
            (Block(layer, part), width)
            for part in PARTS
            for width in (levels[part][1:] if part == "attention" else _some(levels[part]))
        ]

        def measure(tried: Sequence[tuple[Block, int]] = tried) -> list[float]:
            return _kl(located, order, probes, library, tried)

        errors = dict(
            zip(tried, checkpoint.get_or_compute(f"curves of {layer}", measure), strict=True)
        )
        for part, widths in levels.items():
            known = {width: error for (block, width), error in errors.items() if block.part == part}
            points = _interpolated(widths, {widths[0]: 0.0, **known})
            curves.append(Curve(layer, part, widths, points))
    return curves


def _some(widths: Sequence[int]) -> tuple[int, ...]:
    """A quarter gone, five eighths, and all: between them, errors follow power laws."""
    return tuple(dict.fromkeys((*widths[2:-1:3], widths[-1])))


def _kl(
    located: LocatedModel,
    order: Order,
    probes: Sequence[LayerProbe],
    library: Library,
    tried: Sequence[tuple[Block, int]],
) -> list[float]:
    """With each of these cuts alone; what the base says is computed once for all."""
    tallies = [Tally() for _ in tried]
    for probe in probes:
        finals = []
        for block, width in tried:
            spec = base_spec(located.shape).with_width(block, width)
            own = {block: library[block, width]} if (block, width) in library else {}
            with apply_mask(located, spec, order, own):
                finals.append(probe.final_hidden_from(block.layer))
        compare(located.head, probe.base, finals, probe.targets, tallies)
    return [tally.mean_kl for tally in tallies]


def _interpolated(widths: Sequence[int], known: Mapping[int, float]) -> tuple[float, ...]:
    """Power laws of what is removed through the known widths, never falling.

    As errors grow: a straight line would make every width between two known ones look as dear as
    the next, and leave only known ones to choose.
    """
    full = widths[0]
    points = sorted((full - width, max(error, _LEAST)) for width, error in known.items())[1:]
    errors = [0.0]
    for width in widths[1:]:
        gone = full - width
        upper = next(i for i, (removed, _) in enumerate(points) if removed >= gone)
        (x1, y1), (x2, y2) = points[max(0, upper - 1)], points[min(max(1, upper), len(points) - 1)]
        power = math.log(y2 / y1) / math.log(x2 / x1) if x2 > x1 else 1.0
        errors.append(max(errors[-1], y1 * (gone / x1) ** power))
    return tuple(errors)
