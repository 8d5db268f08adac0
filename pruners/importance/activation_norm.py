"""Wanda for whole structures."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics
from pruners.importance.base import input_column_norms, sum_per_group


class ActivationNorm:
    """`sqrt(E[h_j^2]) * ||W[:, j]||`: the size of what a unit writes to the residual stream.

    The score of Wanda (Sun et al. 2023, arXiv 2306.11695) summed over a column, as in the
    structured Wanda-sp baseline of FLAP (An et al. 2024, arXiv 2312.11983).
    """

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.ffn.second_moment.sqrt() * input_column_norms(layer.mlp.down)

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        columns = statistics.heads.second_moment.sqrt() * input_column_norms(layer.attention.o)
        return sum_per_group(columns, shape)
