"""Importance scores of neurons, KV groups, blocks and layers; one small class a module.

A `MomentScorer` needs only weights and moments, so that one pass over the rows serves many. A
`Scorer` reads the rows itself. `make_scorer(name)` gives a `Scorer` for every name.
"""

from pruners.importance.activation_norm import ActivationNorm
from pruners.importance.activation_variance import ActivationVariance
from pruners.importance.attention_entropy import AttentionEntropy
from pruners.importance.base import (
    ImportanceError,
    ImportanceScores,
    MomentScorer,
    Scorer,
    ScorerFromMoments,
    rank_from_moments,
    score_from_moments,
)
from pruners.importance.custom import CustomScorer
from pruners.importance.fluctuation import Fluctuation
from pruners.importance.least_squares import LeastSquares
from pruners.importance.mean_activation import MeanActivation
from pruners.importance.mean_query import MeanQuery
from pruners.importance.random import RandomScores
from pruners.importance.registry import BLOCK_ORDERS, LAYER_ORDERS, SCORERS, make_scorer
from pruners.importance.taylor import Taylor
from pruners.importance.weight_norm import WeightNorm

__all__ = [
    "BLOCK_ORDERS",
    "LAYER_ORDERS",
    "SCORERS",
    "ActivationNorm",
    "ActivationVariance",
    "AttentionEntropy",
    "CustomScorer",
    "Fluctuation",
    "ImportanceError",
    "ImportanceScores",
    "LeastSquares",
    "MeanActivation",
    "MeanQuery",
    "MomentScorer",
    "RandomScores",
    "Scorer",
    "ScorerFromMoments",
    "Taylor",
    "WeightNorm",
    "make_scorer",
    "rank_from_moments",
    "score_from_moments",
]
