"""Random scores, the baseline that every scorer must beat."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics


class RandomScores:
    """Scores every unit by a number drawn uniformly from 0 to 1 with a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        """Return the score of each neuron, `[ffn]`."""
        return torch.rand(layer.mlp.down.in_features, generator=self._generator)

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        """Return the score of each key/value group, `[kv_groups]`."""
        return torch.rand(shape.kv_groups, generator=self._generator)
