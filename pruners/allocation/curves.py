"""Cached errors of each layer at each width: what an allocation trades, without pruning again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pruners.allocation.base import MULTIPLE, blocks_of
from pruners.architecture import Shape
from pruners.importance import ImportanceScores
from pruners.variant import Block, Part, VariantSpec


@dataclass(frozen=True, slots=True)
class Curve:
    """Errors of one block of one layer: `widths` fall from the full one, `errors` rise from 0.

    Width 0, where it is among them, skips the block. Widths are in KV groups (`attention`) or
    neurons (`mlp`); errors of all curves share one unit.
    """

    layer: int
    part: Part
    widths: tuple[int, ...]
    errors: tuple[float, ...]

    def width(self, spec: VariantSpec) -> int:
        """How wide `spec` is here."""
        return spec.width(Block(self.layer, self.part))

    def at(self, spec: VariantSpec, width: int) -> VariantSpec:
        """`spec` with this width here."""
        return spec.with_width(Block(self.layer, self.part), width)


def summed(scores: ImportanceScores, shape: Shape) -> list[Curve]:
    """The error of a width is the sum of the scores of what goes, as squared norms add up."""
    return _curves(scores, shape, lambda falling: falling.flip(0).cumsum(0).flip(0))


def eliminated(scores: ImportanceScores, shape: Shape) -> list[Curve]:
    """Of `LeastSquares`, whose score is the relative output error at which a unit goes."""
    return _curves(scores, shape, lambda falling: falling)


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
    scores: ImportanceScores, shape: Shape, losses: Callable[[torch.Tensor], torch.Tensor]
) -> list[Curve]:
    """`losses(falling)[w]` is the error once all but the first w units are gone."""
    curves = []
    for empty in _all(shape):
        units = (scores.kv if empty.part == "attention" else scores.ffn)[empty.layer]
        lost = losses(units.double().sort(descending=True).values)
        errors = (0.0, *(float(lost[width]) for width in empty.widths[1:]))
        curves.append(replace(empty, errors=errors))
    return curves
