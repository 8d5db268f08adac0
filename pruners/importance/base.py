"""The protocols of scorers, and the order that scores give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from rich.progress import Progress
from torch import nn

from pruners.architecture import LocatedLayer, LocatedModel, Shape
from pruners.calibration.statistics import LayerStatistics, calibrate
from pruners.realization.order import Order
from pruners.support.errors import UserError


class ImportanceError(UserError):
    """A scorer is unknown, or what a user's callable returned makes no order. One clear line."""


@dataclass(frozen=True, slots=True)
class ImportanceScores:
    """fp32, higher is kept longer: `ffn` is `[layers, ffn]`, `kv` is `[layers, kv_groups]`."""

    ffn: torch.Tensor
    kv: torch.Tensor

    def order(self) -> Order:
        """Each layer's units by falling score; ties keep their place."""
        return Order(_falling(self.ffn), _falling(self.kv))


class MomentScorer(Protocol):
    """Scores the units of one layer from its weights and moments; higher is kept longer."""

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        """One score a neuron, `[ffn]`."""
        ...

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        """One score a key/value group with its query heads, `[kv_groups]`."""
        ...


class Scorer(Protocol):
    """Scores a model by whatever it needs to see of `rows` (1-D token ids, ragged)."""

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores: ...


@dataclass(frozen=True, slots=True)
class ScorerFromMoments:
    """Makes a scorer of an `MomentScorer`: one streaming pass for its moments."""

    importance: MomentScorer

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        return score_from_moments(located, calibrate(located, rows, progress), self.importance)


@torch.no_grad()
def score_from_moments(
    located: LocatedModel, statistics: Sequence[LayerStatistics], importance: MomentScorer
) -> ImportanceScores:
    """Scores every layer from moments that were gathered once for many scorers."""
    pairs = list(zip(located.layers, statistics, strict=True))
    return stack_scores(
        [importance.ffn(layer, seen) for layer, seen in pairs],
        [importance.kv(layer, seen, located.shape) for layer, seen in pairs],
    )


def rank_from_moments(
    located: LocatedModel, statistics: Sequence[LayerStatistics], importance: MomentScorer
) -> Order:
    """Orders each layer's neurons and groups by falling score; ties keep their place."""
    return score_from_moments(located, statistics, importance).order()


def stack_scores(ffn: Sequence[torch.Tensor], kv: Sequence[torch.Tensor]) -> ImportanceScores:
    """Scores of a model from those of its layers."""
    return ImportanceScores(
        torch.stack(list(ffn)).float().cpu(), torch.stack(list(kv)).float().cpu()
    )


def sum_per_group(scores: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Sums scores of attention features, `[heads * head_dim]`, over each KV group's query heads."""
    return scores.reshape(shape.kv_groups, -1).sum(1)


def input_column_norms(linear: nn.Linear) -> torch.Tensor:
    """L2 norm of the weights that each input feature meets, `[in]`."""
    return linear.weight.detach().float().norm(dim=0).cpu()


def _falling(scores: torch.Tensor) -> torch.Tensor:
    return scores.argsort(dim=1, descending=True, stable=True)
