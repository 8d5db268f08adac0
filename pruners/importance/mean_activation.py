"""The mean activation, a baseline."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics
from pruners.importance.base import sum_per_group


class MeanActivation:
    """`|E[h_j]|`: the size of a unit's signed mean activation, blind to its weights.

    The default criterion of Slimformers, taken here at the input of `down` and `o`.
    """

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.ffn.mean.abs()

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        return sum_per_group(statistics.heads.mean.abs(), shape)
