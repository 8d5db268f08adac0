"""The variance of activations, as a baseline."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics
from pruners.importance.base import sum_per_group


class ActivationVariance:
    """Scores input `j` of `down` or `o` by `Var(h_j)` over tokens; weights are ignored.

    A group's score is the sum over its features. It is a criterion of the libraries Slimformers and
    slim-model.
    """

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        """Return the score of each neuron, `[ffn]`."""
        return statistics.ffn.variance

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        """Return the score of each key/value group, `[kv_groups]`."""
        return sum_per_group(statistics.heads.variance, shape)
