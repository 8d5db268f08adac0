"""The size of the weights, a baseline."""

import torch
from torch import nn

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics


class WeightNorm:
    """L1 or L2 norm (`power` 1 or 2) of all weights of a unit: its rows in, its columns out.

    The magnitude criterion for coupled structures of LLM-Pruner (Ma et al. 2023, arXiv
    2305.11627), which found it worse than random; it needs no data.
    """

    def __init__(self, power: int = 2) -> None:
        self._power = power

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        mlp = layer.mlp
        return self._norms(mlp.inputs, mlp.down, mlp.down.in_features)

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        a = layer.attention
        return self._norms([a.q, a.k, a.v], a.o, shape.kv_groups)

    def _norms(self, rows: list[nn.Linear], columns: nn.Linear, units: int) -> torch.Tensor:
        """Norm over all of a unit's weights: adjacent rows of some matrices, columns of one."""
        weights = [*(linear.weight for linear in rows), columns.weight.T]
        sums = [w.float().abs().pow(self._power).reshape(units, -1).sum(1) for w in weights]
        return torch.stack(sums).sum(0).pow(1 / self._power).cpu()
