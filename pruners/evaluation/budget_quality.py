"""Measure the quality under KV budgets, evicted as the engine evicts."""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.artefact.table import Quality
from pruners.evaluation.evaluate import evaluate
from pruners.kv import make_eviction
from pruners.kv.transformers_cache import forward_with_eviction
from pruners.support.checkpoint import Checkpoint


def measure_budgets(
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    budgets: Iterable[int],
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> dict[int, Quality]:
    """Return the quality for each KV budget.

    A row's first `budget` tokens are its prompt; quality is measured on the next `budget` tokens.
    Budgets for which no row is long enough are left out. An encoder has no result.
    """
    qualities = {}
    for budget in budgets:
        long = [row[: 2 * budget] for row in rows if len(row) >= 2 * budget]
        if long and located.causal:
            forward = partial(
                forward_with_eviction, located, prompt=budget, eviction=make_eviction(budget)
            )
            name = f"kv {budget}"
            qualities[budget] = evaluate(
                located, {name: forward}, long, budget, progress, checkpoint
            ).quality[name]
    return qualities
