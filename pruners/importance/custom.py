"""Scores from a user's own callable."""

from collections.abc import Callable, Sequence

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.collectors import InputActivations, down_projection, output_projection
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.base import ImportanceError, ImportanceScores, stack_scores

PruningStrategy = Callable[[torch.Tensor, float], tuple[Sequence[int] | torch.Tensor, int]]
"""`(activations, sparsity) -> (keep, total)`, as in Slimformers.

`activations` are fp32 `[1, tokens, units]`, `sparsity` is the share of units to remove, `keep` are
the indices of the units to keep, and `total` is the number of units.
"""


class CustomScorer:
    """Scores a unit by the number of sparsities at which a user's callable keeps it.

    The callable has the plug-in interface of the library Slimformers. It receives the inputs of
    `down` for neurons, and for KV groups the mean of `|h|` over each group's features at the input
    of `o`. The order is nested even if the callable's choices at different sparsities are not. All
    activations of one layer are in memory at a time. Raises `ImportanceError` if the callable does
    not return distinct indices.
    """

    def __init__(
        self,
        strategy: PruningStrategy,
        sparsities: Sequence[float] = (0.125, 0.25, 0.375, 0.5, 0.75),
    ) -> None:
        self._strategy = strategy
        self._sparsities = sparsities

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        """Return the scores of all units."""

        def make_collectors(_: int) -> tuple[InputActivations, InputActivations]:
            return InputActivations(down_projection), InputActivations(output_projection)

        ffn, kv = [], []
        for _, (neurons, heads) in collect_by_layer(
            located, rows, make_collectors, progress=progress
        ):
            ffn.append(self._score(neurons.tensor))
            groups = heads.tensor.unflatten(1, (located.shape.kv_groups, -1))
            kv.append(self._score(groups.abs().mean(-1)))
        return stack_scores(ffn, kv)

    def _score(self, activations: torch.Tensor) -> torch.Tensor:
        units = activations.shape[1]
        score = torch.zeros(units)
        for sparsity in self._sparsities:
            kept, total = self._strategy(activations[None], sparsity)
            keep = torch.as_tensor(kept, dtype=torch.long)
            if total != units:
                raise ImportanceError(f"the custom scorer saw {units} units but counted {total}")
            if keep.dim() != 1 or len(keep.unique()) != len(keep) or not _within(keep, units):
                raise ImportanceError(
                    f"the custom scorer must return distinct indices below {units}"
                )
            score[keep] += 1
        return score


def _within(keep: torch.Tensor, units: int) -> bool:
    return bool(((keep >= 0) & (keep < units)).all())
