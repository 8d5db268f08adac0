"""From calibration rows to corrections, and what each step of them bought on held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.correction import Correction, LowRankCorrection, RefitCorrection, constant_correction
from pruners.realization.order import Order, feature_indices
from pruners.recovery.passes import Linear, moments
from pruners.recovery.solve import bias, low_rank, refits, relative_errors
from pruners.variant import Block, Part, VariantSpec

RIDGES = (1e-3, 1e-2, 1e-1)
"""Strengths that are tried, as shares of the mean variance of the kept inputs."""


@dataclass(frozen=True, slots=True)
class Bought:
    """Relative output error of one narrowed `o` or `down` on held-out rows, step by step.

    `none` as masked, `bias` with the mean put right, `low_rank` with the residual of the asked
    rank (equal to `bias` for rank 0), `refit` with the whole matrix at the chosen `ridge`.
    """

    block: Block
    kept: int
    ridge: float
    none: float
    bias: float
    low_rank: float
    refit: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """Corrections of one variant and the report on each."""

    corrections: dict[Block, Correction]
    bought: list[Bought]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`rank` of the residual, 0 for the bias alone; `materialised` keeps the whole refit."""

    rank: int = 16
    materialised: bool = False


def recover(
    located: LocatedModel,
    specs: Sequence[VariantSpec],
    order: Order,
    rows: Sequence[torch.Tensor],
    recipe: Recipe,
    progress: Progress | None = None,
) -> list[Recovered]:
    """Corrections of many variants from one pass over the unpruned model.

    `rows` are 1-D, ragged; a quarter of them is held out to choose the ridge. The matrices of one
    layer are held at a time. Full blocks need no correction; a skipped one is made up for by the
    mean of what it adds. Raises `RecoveryError` for fewer than two rows, `ValueError` if a spec
    does not fit the model.
    """
    for spec in specs:
        spec.check(located.shape)
    found = [Recovered({}, []) for _ in specs]
    for index, linears in moments(located, rows, progress):
        for spec, recovered in zip(specs, found, strict=True):
            recover_layer(located, index, linears, spec, order, recipe, recovered)
    return found


def recover_layer(
    located: LocatedModel,
    index: int,
    linears: dict[Part, Linear],
    spec: VariantSpec,
    order: Order,
    recipe: Recipe,
    recovered: Recovered,
) -> None:
    """Adds the corrections of one layer, seen as `linears`, to `recovered`."""
    queries = located.shape.queries_per_group * located.shape.head_dim
    parts: tuple[tuple[Part, torch.Tensor, int, int], ...] = (
        ("attention", order.kv[index], spec.kv_groups[index], queries),
        ("mlp", order.ffn[index], spec.ffn[index], 1),
    )
    for part, units, width, size in parts:
        block = Block(index, part)
        if width == 0:
            recovered.corrections[block] = constant_correction(linears[part].adds)
        elif width < len(units):
            kept = feature_indices(units[:width], size)
            correction, bought = _solve(linears[part], kept, recipe, block)
            recovered.corrections[block] = correction
            recovered.bought.append(bought)


@torch.no_grad()
def _solve(
    seen: Linear, kept: torch.Tensor, recipe: Recipe, block: Block
) -> tuple[Correction, Bought]:
    shared = seen.fit.weight[:, kept]

    def error(replacement: torch.Tensor) -> float:
        offset = bias(seen.fit, kept, replacement)
        return relative_errors(seen.held_out, kept, replacement, [offset])[0]

    tried = ((error(shared + one.change), one) for one in refits(seen.fit, kept, RIDGES))
    least, best = min(tried, key=lambda pair: pair[0])
    up, down_ = low_rank(best.change, best.within, recipe.rank)
    approximate = shared + up @ down_
    offsets = [torch.zeros_like(shared[:, 0]), bias(seen.fit, kept, shared)]
    none, biased = relative_errors(seen.held_out, kept, shared, offsets)
    bought = Bought(
        block=block,
        kept=len(kept),
        ridge=best.ridge,
        none=none,
        bias=biased,
        low_rank=error(approximate),
        refit=least,
    )
    if recipe.materialised:
        refitted = shared + best.change
        offset = bias(seen.fit, kept, refitted)
        return RefitCorrection(offset.float(), refitted.float()), bought
    offset = bias(seen.fit, kept, approximate)
    return LowRankCorrection(offset.float(), up.float(), down_.float()), bought
