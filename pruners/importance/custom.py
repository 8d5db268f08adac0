"""A user's own criterion."""

from collections.abc import Callable, Sequence

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.collectors import InputActivations, down_projection, output_projection
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.base import ImportanceError, ImportanceScores, stack_scores

PruningStrategy = Callable[[torch.Tensor, float], tuple[Sequence[int] | torch.Tensor, int]]
"""`(activations, sparsity) -> (keep, total)`, as in Slimformers: indices of the units to keep."""


class CustomScorer:
    """Asks a user's callable at several sparsities; a unit scores by how often it is kept.

    The plug-in contract of Slimformers. Activations are fp32 `[1, tokens, units]`: inputs of
    `down` for neurons, the mean magnitude over its features of each KV group at the input of `o`.
    A callable that keeps different units at different sparsities still gives one nested order.
    All activations of one layer are held at a time. Raises `ImportanceError` if what comes back
    is not a set of indices.
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
        def watch(_: int) -> tuple[InputActivations, InputActivations]:
            return InputActivations(down_projection), InputActivations(output_projection)

        ffn, kv = [], []
        for _, (neurons, heads) in collect_by_layer(located, rows, watch, progress=progress):
            ffn.append(self._score(neurons.all))
            groups = heads.all.unflatten(1, (located.shape.kv_groups, -1))
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
