"""Which widths and corrections: choices by measured KL on calibration rows that no fit saw."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.progress import Progress

from pruners.allocation import AllocationError, Cost, Curve, greedy, search
from pruners.architecture import LocatedModel
from pruners.builder.recipe import BuildError
from pruners.correction import Correction
from pruners.evaluation.evaluate import Reader, evaluate, reading
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.recovery.library import Library
from pruners.support.checkpoint import Checkpoint
from pruners.variant import Block, VariantSpec, base_spec

Own = Mapping[Block, Correction]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Corrections that serve a variant best, and the KL with each that was tried."""

    corrections: dict[Block, Correction]
    kl: dict[str, float]


def touched(located: LocatedModel, library: Library) -> Cost:
    """Matrix parameters read for a token, corrections among them."""
    return lambda spec: spec.parameters(located.shape) + library.parameters(spec)


def allocate(
    located: LocatedModel,
    order: Order,
    curves: Sequence[Curve],
    library: Library,
    cost: Cost,
    share: float,
    rows: Sequence[torch.Tensor],
    trials: int = 0,
    seed: int = 0,
    storage: Path | None = None,
    progress: Progress | None = None,
) -> VariantSpec:
    """The widths of all blocks, skipped ones among them, that cost a share of what the base does.

    Greedy by cached errors; with `trials`, that many reweighted candidates are compared by their
    KL to the base on `rows`. Raises `BuildError`.
    """
    base = base_spec(located.shape)
    budget = share * cost(base)

    def loss(spec: VariantSpec) -> float:
        reader = reading(located, partial(apply_mask, located, spec, order, library.of(spec)))
        return evaluate(located, {"candidate": reader}, rows).quality["candidate"].kl

    try:
        if trials:
            url = None if storage is None else f"sqlite:///{storage}"
            found = search(base, curves, cost, budget, loss, trials, seed, url, progress)
            spec = found.spec
        else:
            spec = greedy(base, curves, cost, budget)
    except AllocationError as error:
        raise BuildError(f"recipe: a share of {share:g}: {error}") from error
    return spec


def choose_corrections(
    located: LocatedModel,
    order: Order,
    specs: Sequence[VariantSpec],
    tiers: Mapping[str, Callable[[VariantSpec], Own]],
    rows: Sequence[torch.Tensor],
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> dict[str, Chosen]:
    """For each variant the tier of corrections, or none, with which it is nearest to the base."""
    offers: dict[str, Callable[[VariantSpec], Own]] = {"none": lambda _: {}, **tiers}
    readers: dict[str, Reader] = {
        f"{spec.name} {tier}": reading(
            located, partial(apply_mask, located, spec, order, own(spec))
        )
        for spec in specs
        for tier, own in offers.items()
    }
    quality = evaluate(located, readers, rows, progress=progress, checkpoint=checkpoint).quality
    chosen = {}
    for spec in specs:
        kl = {tier: quality[f"{spec.name} {tier}"].kl for tier in offers}
        best = min(kl, key=kl.__getitem__)
        chosen[spec.name] = Chosen(dict(offers[best](spec)), kl)
    return chosen
