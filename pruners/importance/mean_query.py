"""The mean query of each head, the default criterion of Slimformers."""

from collections.abc import Sequence

import torch
from rich.progress import Progress

from pruners.architecture import LocatedLayer, LocatedModel
from pruners.calibration.collectors import InputMoments, OutputMoments, down_projection
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.base import ImportanceScores, stack_scores, sum_per_group


class MeanQuery:
    """Scores a KV group by the sum of `|E[q_j]|` over its query features, a neuron by `|E[h_j]|`.

    `q` is the output of the query projection, `h` the input of `down`. These are the two default
    criteria of the library Slimformers, extended to packed projections and grouped queries.
    """

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        """Return the scores of all units."""
        shape = located.shape

        def make_collectors(_: int) -> tuple[InputMoments, OutputMoments]:
            return InputMoments(shape.ffn, down_projection), OutputMoments(
                shape.heads * shape.head_dim, _query
            )

        moments = [
            pair for _, pair in collect_by_layer(located, rows, make_collectors, progress=progress)
        ]
        return stack_scores(
            [neurons.mean.abs() for neurons, _ in moments],
            [sum_per_group(queries.mean.abs(), shape) for _, queries in moments],
        )


def _query(layer: LocatedLayer) -> torch.nn.Module:
    return layer.attention.q
