"""Cached errors of each layer at each width: what an allocation trades, without pruning again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from rich.progress import Progress

from pruners.allocation.base import MULTIPLE, blocks_of
from pruners.architecture import Decoder, Shape
from pruners.depth import Part
from pruners.evaluate import Reader, evaluate, reading
from pruners.importance import Scores
from pruners.mask import mask
from pruners.order import Order
from pruners.variant import VariantSpec, base_spec


@dataclass(frozen=True, slots=True)
class Curve:
    """Errors of one block of one layer: `widths` fall from the full one, `errors` rise from 0.

    Widths are in KV groups (`attention`) or neurons (`mlp`); errors of all curves share one unit.
    """

    layer: int
    part: Part
    widths: tuple[int, ...]
    errors: tuple[float, ...]

    def width(self, spec: VariantSpec) -> int:
        """How wide `spec` is here."""
        return (spec.kv_groups if self.part == "attention" else spec.ffn)[self.layer]

    def at(self, spec: VariantSpec, width: int) -> VariantSpec:
        """`spec` with this width here."""
        if self.part == "attention":
            return replace(spec, kv_groups=_with(spec.kv_groups, self.layer, width))
        return replace(spec, ffn=_with(spec.ffn, self.layer, width))


def summed(scores: Scores, shape: Shape) -> list[Curve]:
    """The error of a width is the sum of the scores of what goes, as squared norms add up."""
    return _curves(scores, shape, lambda falling: falling.flip(0).cumsum(0).flip(0))


def eliminated(scores: Scores, shape: Shape) -> list[Curve]:
    """Of `LeastSquares`, whose score is the relative output error at which a unit goes."""
    return _curves(scores, shape, lambda falling: falling)


def measured(
    decoder: Decoder,
    order: Order,
    rows: Sequence[torch.Tensor],
    shares: Sequence[float] = (0.75, 0.5, 0.25),
    progress: Progress | None = None,
) -> list[Curve]:
    """KL to the base, nats per token, with one layer narrowed at a time.

    What the score of a layer cannot say: how much the model minds. Neurons are cut to `shares` and
    widths between are interpolated; KV groups are cut one by one.
    """
    shape = decoder.shape
    curves: list[Curve] = []
    for empty in _all(shape):
        full = empty.widths[0]
        tried = empty.widths[1:]
        if empty.part == "mlp":
            tried = tuple(
                sorted({_nearest(empty.widths, share * full) for share in shares} - {full})
            )
        readers: dict[str, Reader] = {
            str(width): reading(
                decoder, partial(mask, decoder, empty.at(base_spec(shape), width), order)
            )
            for width in tried
        }
        if readers:
            quality = evaluate(decoder, readers, rows, progress=progress).quality
            known = {full: 0.0} | {width: quality[str(width)].kl for width in tried}
            curves.append(replace(empty, errors=_interpolated(empty.widths, known)))
    return curves


def predicted(curves: Sequence[Curve]) -> Callable[[VariantSpec], float]:
    """The sum of cached errors of a variant: layers are taken to do harm independently."""
    tables = [(curve, dict(zip(curve.widths, curve.errors, strict=True))) for curve in curves]
    return lambda spec: sum(table.get(curve.width(spec), 0.0) for curve, table in tables)


def _all(shape: Shape) -> list[Curve]:
    """Every block's widths, with no errors yet."""
    blocks = blocks_of(shape.ffn, MULTIPLE)
    ffn = tuple(MULTIPLE * n for n in range(blocks, 0, -1))
    kv = tuple(range(shape.kv_groups, 0, -1))
    parts: tuple[tuple[Part, tuple[int, ...]], ...] = (("attention", kv), ("mlp", ffn))
    return [
        Curve(layer, part, widths, (0.0,) * len(widths))
        for layer in range(shape.layers)
        for part, widths in parts
    ]


def _curves(
    scores: Scores, shape: Shape, losses: Callable[[torch.Tensor], torch.Tensor]
) -> list[Curve]:
    """`losses(falling)[w]` is the error once all but the first w units are gone."""
    curves = []
    for empty in _all(shape):
        units = (scores.kv if empty.part == "attention" else scores.ffn)[empty.layer]
        lost = losses(units.double().sort(descending=True).values)
        errors = (0.0, *(float(lost[width]) for width in empty.widths[1:]))
        curves.append(replace(empty, errors=errors))
    return curves


def _nearest(widths: Sequence[int], wanted: float) -> int:
    return min(widths, key=lambda width: abs(width - wanted))


def _interpolated(widths: Sequence[int], known: dict[int, float]) -> tuple[float, ...]:
    """Straight lines between known widths, and on to the smallest by the last of them."""
    points = sorted(known, reverse=True)
    errors = []
    for width in widths:
        behind = next((i for i, point in enumerate(points) if point <= width), len(points) - 1)
        upper, lower = points[max(behind - 1, 0)], points[max(behind, 1)]
        slope = (known[lower] - known[upper]) / (upper - lower)
        errors.append(known[upper] + slope * (upper - width))
    return tuple(errors)


def _with(widths: tuple[int, ...], index: int, width: int) -> tuple[int, ...]:
    return (*widths[:index], width, *widths[index + 1 :])
