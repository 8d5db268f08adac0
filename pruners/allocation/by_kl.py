"""How much the model minds a cut: the KL to the base with one block cut at a time."""

from collections.abc import Mapping, Sequence

import torch
from rich.progress import Progress

from pruners.allocation.curves import Curve
from pruners.architecture import Decoder, Shape
from pruners.divergence import Tally, compare
from pruners.journal import Journal
from pruners.mask import mask
from pruners.order import Order
from pruners.probe import Probe
from pruners.progress import tracked
from pruners.recovery.correction import Correction
from pruners.rows import batches
from pruners.variant import PARTS, Block, base_spec

LEVELS = 8
"""Neurons are cut in eighths, and measured at every other one."""
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
    decoder: Decoder,
    order: Order,
    rows: Sequence[torch.Tensor],
    library: Library,
    journal: Journal,
    progress: Progress | None = None,
) -> list[Curve]:
    """KL to the base, nats per token, of each block at each of its levels, all others whole.

    What the score of a layer cannot say. Each width is corrected as `library` has it. Every other
    FFN level is interpolated; what was measured of a layer is noted in the journal.
    """
    probes = [Probe(decoder, batch) for batch in batches(rows)]
    curves: list[Curve] = []
    for layer in tracked(range(len(decoder.layers)), "Measuring each layer", progress):
        for part in PARTS:
            block = Block(layer, part)
            widths = (kv_levels if part == "attention" else ffn_levels)(decoder.shape)
            tried = widths[1:] if part == "attention" else (*widths[2:-1:2], 0)

            def measure(block: Block = block, tried: Sequence[int] = tried) -> list[float]:
                return [_kl(decoder, order, probes, library, block, width) for width in tried]

            errors = journal.value(f"curve {layer} {part}", measure)
            known = {widths[0]: 0.0, **dict(zip(tried, errors, strict=True))}
            curves.append(Curve(layer, part, widths, _interpolated(widths, known)))
    return curves


def _kl(
    decoder: Decoder,
    order: Order,
    probes: Sequence[Probe],
    library: Library,
    block: Block,
    width: int,
) -> float:
    spec = base_spec(decoder.shape).at(block, width)
    own = {block: library[block, width]} if (block, width) in library else {}
    tally = Tally()
    with mask(decoder, spec, order, own):
        for probe in probes:
            final = probe.final(block.layer)
            compare(decoder.head, probe.base, [final], probe.targets, [tally])
    return tally.mean_kl


def _interpolated(widths: Sequence[int], known: Mapping[int, float]) -> tuple[float, ...]:
    """Straight lines between known widths, never falling."""
    points = sorted(known, reverse=True)
    errors: list[float] = []
    for width in widths:
        upper = min(point for point in points if point >= width)
        lower = max(point for point in points if point <= width)
        share = 0.0 if upper == lower else (upper - width) / (upper - lower)
        error = known[upper] + share * (known[lower] - known[upper])
        errors.append(max(error, *errors) if errors else error)
    return tuple(errors)
