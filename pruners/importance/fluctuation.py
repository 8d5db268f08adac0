"""FLAP: what a constant cannot replace."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics
from pruners.importance.base import input_column_norms, sum_per_group


class Fluctuation:
    """`Var(h_j) * ||W[:, j]||^2`: the power that is left when a bias takes over a unit's mean.

    The weighted input feature variance (WIFV) of FLAP (An et al. 2024, arXiv 2312.11983); a head's
    score is the sum over its features. Made for use with bias compensation.
    """

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.ffn.variance * input_column_norms(layer.mlp.down).square()

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        columns = statistics.heads.variance * input_column_norms(layer.attention.o).square()
        return sum_per_group(columns, shape)
