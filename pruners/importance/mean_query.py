"""Slimformers: heads by their mean query."""

from collections.abc import Sequence

import torch
from rich.progress import Progress

from pruners.architecture import LocatedLayer, LocatedModel
from pruners.calibration.collectors import InputMoments, OutputMoments, down_projection
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.base import ImportanceScores, stack_scores, sum_per_group


class MeanQuery:
    """`|E[q]|` over a group's query features; neurons by their mean activation `|E[h_j]|`.

    The two default criteria of Slimformers. It divides a packed projection into heads and crashes
    on grouped queries; here a KV group is scored with all its query heads.
    """

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        shape = located.shape

        def watch(_: int) -> tuple[InputMoments, OutputMoments]:
            return InputMoments(shape.ffn, down_projection), OutputMoments(
                shape.heads * shape.head_dim, _query
            )

        seen = [pair for _, pair in collect_by_layer(located, rows, watch, progress=progress)]
        return stack_scores(
            [neurons.mean.abs() for neurons, _ in seen],
            [sum_per_group(queries.mean.abs(), shape) for _, queries in seen],
        )


def _query(layer: LocatedLayer) -> torch.nn.Module:
    return layer.attention.q
