"""Scorers and orders by the names that users give."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.importance.activation_norm import ActivationNorm
from pruners.importance.activation_variance import ActivationVariance
from pruners.importance.attention_entropy import AttentionEntropy
from pruners.importance.base import ImportanceError, Scorer, ScorerFromMoments
from pruners.importance.block_orders import (
    attention_entropy,
    block_influence,
    last_layers,
    layer_influence,
)
from pruners.importance.fluctuation import Fluctuation
from pruners.importance.least_squares import LeastSquares
from pruners.importance.mean_activation import MeanActivation
from pruners.importance.mean_query import MeanQuery
from pruners.importance.random import RandomScores
from pruners.importance.taylor import Taylor
from pruners.importance.weight_norm import WeightNorm
from pruners.variant import Block

SCORERS: dict[str, Callable[[int], Scorer]] = {
    "random": lambda seed: ScorerFromMoments(RandomScores(seed)),
    "l1": lambda _: ScorerFromMoments(WeightNorm(1)),
    "l2": lambda _: ScorerFromMoments(WeightNorm(2)),
    "mean-activation": lambda _: ScorerFromMoments(MeanActivation()),
    "activation-variance": lambda _: ScorerFromMoments(ActivationVariance()),
    "wanda": lambda _: ScorerFromMoments(ActivationNorm()),
    "flap": lambda _: ScorerFromMoments(Fluctuation()),
    "taylor": lambda _: Taylor(),
    "least-squares": lambda _: LeastSquares(),
    "mean-query": lambda _: MeanQuery(),
    "attention-entropy": lambda _: AttentionEntropy(),
}
"""Makes each scorer from a seed, which only `random` uses."""

TokenRows: TypeAlias = Sequence[torch.Tensor]

LAYER_ORDERS: dict[str, Callable[[LocatedModel, TokenRows, Progress | None], tuple[int, ...]]] = {
    "block-influence": layer_influence,
    "last": lambda located, _, __: last_layers(located),
}
"""Orders of layers by a score alone, the first to skip first."""

BLOCK_ORDERS: dict[str, Callable[[LocatedModel, TokenRows, Progress | None], tuple[Block, ...]]] = {
    "block-influence": block_influence,
    "attention-entropy": attention_entropy,
}
"""Orders of blocks by a score alone, the first to skip first."""


def make_scorer(name: str, seed: int = 0) -> Scorer:
    """Return the scorer of this name. Raises `ImportanceError` with all names for any other."""
    if name not in SCORERS:
        raise ImportanceError(f"no importance '{name}'; there are: {', '.join(SCORERS)}")
    return SCORERS[name](seed)
