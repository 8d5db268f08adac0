"""FLAP's fluctuation score."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics
from pruners.importance.base import input_column_norms, sum_per_group


class Fluctuation:
    """Scores input `j` of `down` or `o` by `Var(h_j) * ||W[:, j]||_2^2`.

    It is the error that remains when a bias replaces the unit's mean output, so it suits bias
    compensation. A group's score is the sum over its features. It is the weighted input feature
    variance (WIFV) of FLAP (An et al. 2024, arXiv 2312.11983).
    """

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        """Return the score of each neuron, `[ffn]`."""
        return statistics.ffn.variance * input_column_norms(layer.mlp.down).square()

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        """Return the score of each key/value group, `[kv_groups]`."""
        columns = statistics.heads.variance * input_column_norms(layer.attention.o).square()
        return sum_per_group(columns, shape)
