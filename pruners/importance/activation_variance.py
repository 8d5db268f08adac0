"""The variance of activations, a baseline."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics
from pruners.importance.base import sum_per_group


class ActivationVariance:
    """`Var(h_j)`: how much a unit's activation changes over tokens, blind to its weights.

    A criterion of Slimformers and slim-model, taken at the input of `down` and `o`.
    """

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        return statistics.ffn.variance

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        return sum_per_group(statistics.heads.variance, shape)
