"""The protocols of scorers, and the scores and orders that they give."""

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
    """A scorer is unknown, or a user's callable returned no valid indices. One line."""


@dataclass(frozen=True, slots=True)
class ImportanceScores:
    """Scores of all units: `ffn` fp32 `[layers, ffn]`, `kv` fp32 `[layers, kv_groups]`.

    Units of higher scores are kept longer.
    """

    ffn: torch.Tensor
    kv: torch.Tensor

    def order(self) -> Order:
        """Return each layer's units by falling score; equal scores keep their order."""
        return Order(_argsort_falling(self.ffn), _argsort_falling(self.kv))


class MomentScorer(Protocol):
    """Scores the units of one layer from its weights and moments.

    Units of higher scores are kept longer.
    """

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        """Return the score of each neuron, `[ffn]`."""
        ...

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        """Return the score of each key/value group with its query heads, `[kv_groups]`."""
        ...


class Scorer(Protocol):
    """Scores all units of a model from rows of token ids, each int64 `[tokens]`."""

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        """Return the scores of all units."""
        ...


@dataclass(frozen=True, slots=True)
class ScorerFromMoments:
    """A `Scorer` that gathers the moments for a `MomentScorer` in one pass over the rows."""

    scorer: MomentScorer

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        """Return the scores of all units."""
        return score_from_moments(located, calibrate(located, rows, progress), self.scorer)


@torch.no_grad()
def score_from_moments(
    located: LocatedModel, statistics: Sequence[LayerStatistics], scorer: MomentScorer
) -> ImportanceScores:
    """Return the scores of all units from moments that were gathered before."""
    pairs = list(zip(located.layers, statistics, strict=True))
    return stack_scores(
        [scorer.ffn(layer, moments) for layer, moments in pairs],
        [scorer.kv(layer, moments, located.shape) for layer, moments in pairs],
    )


def rank_from_moments(
    located: LocatedModel, statistics: Sequence[LayerStatistics], scorer: MomentScorer
) -> Order:
    """Return each layer's neurons and groups by falling score; equal scores keep their order."""
    return score_from_moments(located, statistics, scorer).order()


def stack_scores(ffn: Sequence[torch.Tensor], kv: Sequence[torch.Tensor]) -> ImportanceScores:
    """Return a model's scores from those of its layers, `[ffn]` and `[kv_groups]` each."""
    return ImportanceScores(
        torch.stack(list(ffn)).float().cpu(), torch.stack(list(kv)).float().cpu()
    )


def sum_per_group(scores: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Sum scores of attention features over each group's query heads.

    The scores are `[heads * head_dim]`, the result is `[kv_groups]`.
    """
    return scores.reshape(shape.kv_groups, -1).sum(1)


def input_column_norms(linear: nn.Linear) -> torch.Tensor:
    """Return the L2 norm of each column of the weight, fp32 `[in]`."""
    return linear.weight.detach().float().norm(dim=0).cpu()


def _argsort_falling(scores: torch.Tensor) -> torch.Tensor:
    return scores.argsort(dim=1, descending=True, stable=True)
