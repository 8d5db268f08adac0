"""The mean activation, as a baseline."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics
from pruners.importance.base import sum_per_group


class MeanActivation:
    """Scores input `j` of `down` or `o` by `|E[h_j]|` over tokens; weights are ignored.

    A group's score is the sum over its features. It is the default criterion of the library
    Slimformers, which takes it at the gate's output instead.
    """

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        """Return the score of each neuron, `[ffn]`."""
        return statistics.ffn.mean.abs()

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        """Return the score of each key/value group, `[kv_groups]`."""
        return sum_per_group(statistics.heads.mean.abs(), shape)
