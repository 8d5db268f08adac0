"""Wanda's score, summed over whole neurons and KV groups (Wanda-sp)."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics
from pruners.importance.base import input_column_norms, sum_per_group


class ActivationNorm:
    """Scores input `j` of `down` or `o` by `sqrt(E[h_j^2]) * ||W[:, j]||_2`.

    `h_j` is the input's activation and `W[:, j]` its column: the product is the size of what it
    adds to the residual stream. A group's score is the sum over its features. It is the score of
    Wanda (Sun et al. 2023, arXiv 2306.11695) taken over a column, as in the structured Wanda-sp
    baseline of FLAP (An et al. 2024, arXiv 2312.11983).
    """

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        """Return the score of each neuron, `[ffn]`."""
        return statistics.ffn.second_moment.sqrt() * input_column_norms(layer.mlp.down)

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        """Return the score of each key/value group, `[kv_groups]`."""
        columns = statistics.heads.second_moment.sqrt() * input_column_norms(layer.attention.o)
        return sum_per_group(columns, shape)
