"""The norm of a unit's weights, as a baseline."""

import torch
from torch import nn

from pruners.architecture import LocatedLayer, Shape
from pruners.calibration.statistics import LayerStatistics


class WeightNorm:
    """Scores a unit by `(sum |w|^p)^(1/p)` over all its weights, with `p` = `power`.

    A unit's weights are its rows of the input projections and its columns of the output projection.
    No data is used. It is the magnitude criterion for coupled structures of LLM-Pruner (Ma et al.
    2023, arXiv 2305.11627), which reports it to be worse than random.
    """

    def __init__(self, power: int = 2) -> None:
        self._power = power

    def ffn(self, layer: LocatedLayer, statistics: LayerStatistics) -> torch.Tensor:
        """Return the score of each neuron, `[ffn]`."""
        mlp = layer.mlp
        return self._unit_norms(mlp.inputs, mlp.down, mlp.down.in_features)

    def kv(self, layer: LocatedLayer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        """Return the score of each key/value group, `[kv_groups]`."""
        attention = layer.attention
        inputs = [attention.q, attention.k, attention.v]
        return self._unit_norms(inputs, attention.o, shape.kv_groups)

    def _unit_norms(self, rows: list[nn.Linear], columns: nn.Linear, units: int) -> torch.Tensor:
        """Return the norm of each unit's rows of some weights and columns of another, `[units]`."""
        weights = [*(linear.weight for linear in rows), columns.weight.T]
        sums = [w.float().abs().pow(self._power).reshape(units, -1).sum(1) for w in weights]
        return torch.stack(sums).sum(0).pow(1 / self._power).cpu()
