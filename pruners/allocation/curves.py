"""Cached errors of each block at each width: an allocation trades them without pruning again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from pruners.allocation.base import MULTIPLE, count_blocks
from pruners.architecture import Shape
from pruners.importance import ImportanceScores
from pruners.variant import Block, Part, VariantSpec


@dataclass(frozen=True, slots=True)
class Curve:
    """Error of one block of one layer at each width.

    `widths` fall from the full one, in KV groups (`attention`) or neurons (`mlp`); width 0, where
    it is among them, skips the block. `errors[i]` belongs to `widths[i]`; they rise from 0. All
    curves of an allocation share one unit.
    """

    layer: int
    part: Part
    widths: tuple[int, ...]
    errors: tuple[float, ...]

    def width(self, spec: VariantSpec) -> int:
        """Return the width of this block in `spec`."""
        return spec.width(Block(self.layer, self.part))

    def at(self, spec: VariantSpec, width: int) -> VariantSpec:
        """Return `spec` with this block at `width`."""
        return spec.with_width(Block(self.layer, self.part), width)


def curves_of_summed_scores(scores: ImportanceScores, shape: Shape) -> list[Curve]:
    """Return curves whose error is the sum of the scores of the removed units.

    Right for scores that are squared norms, which add up.
    """
    return _curves(scores, shape, lambda falling: falling.flip(0).cumsum(0).flip(0))


def curves_of_elimination(scores: ImportanceScores, shape: Shape) -> list[Curve]:
    """Return curves of `LeastSquares` scores.

    There a unit's score is already the relative output error once it and all less important
    units are gone.
    """
    return _curves(scores, shape, lambda falling: falling)


def additive_loss(curves: Sequence[Curve]) -> Callable[[VariantSpec], float]:
    """Return a loss of a variant that is the sum of its blocks' cached errors.

    It assumes that errors of different blocks are independent.
    """
    tables = [(curve, dict(zip(curve.widths, curve.errors, strict=True))) for curve in curves]
    return lambda spec: sum(table.get(curve.width(spec), 0.0) for curve, table in tables)


def _empty_curves(shape: Shape) -> list[Curve]:
    """Return every block's widths, with errors of 0."""
    blocks = count_blocks(shape.ffn, MULTIPLE)
    ffn = tuple(MULTIPLE * n for n in range(blocks, 0, -1))
    kv = tuple(range(shape.kv_groups, 0, -1)) if shape.cuts_groups else (shape.kv_groups,)
    parts: tuple[tuple[Part, tuple[int, ...]], ...] = (("attention", kv), ("mlp", ffn))
    return [
        Curve(layer, part, widths, (0.0,) * len(widths))
        for layer in range(shape.layers)
        for part, widths in parts
    ]


def _curves(
    scores: ImportanceScores, shape: Shape, errors_of: Callable[[torch.Tensor], torch.Tensor]
) -> list[Curve]:
    """Return curves from the errors at every width.

    `errors_of` takes a block's scores in falling order, fp64 `[units]`, to `[units]`, whose
    element w is the error once all but the first w units are gone.
    """
    curves = []
    for empty in _empty_curves(shape):
        units = (scores.kv if empty.part == "attention" else scores.ffn)[empty.layer]
        lost = errors_of(units.double().sort(descending=True).values)
        errors = (0.0, *(float(lost[width]) for width in empty.widths[1:]))
        curves.append(replace(empty, errors=errors))
    return curves
