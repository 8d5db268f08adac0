"""Chance, the baseline that every score must beat."""

import torch

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics


class RandomScores:
    """Uniform scores from a seed, drawn afresh for each layer."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        return torch.rand(layer.mlp.down.in_features, generator=self._generator)

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        return torch.rand(shape.kv_groups, generator=self._generator)
