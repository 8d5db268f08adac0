"""The size of the weights, a baseline."""

import torch

from pruners.architecture import Layer, Shape
from pruners.calibration import LayerStatistics


class WeightNorm:
    """L2 norm of all weights of a unit: its rows in, its columns out.

    The magnitude criterion for coupled structures of LLM-Pruner (Ma et al. 2023, arXiv
    2305.11627), which found it worse than random; it needs no data.
    """

    def ffn(self, layer: Layer, statistics: LayerStatistics) -> torch.Tensor:
        mlp = layer.mlp
        return _norms([mlp.gate.weight, mlp.up.weight, mlp.down.weight.T], len(mlp.up.weight))

    def kv(self, layer: Layer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        a = layer.attention
        return _norms([a.q.weight, a.k.weight, a.v.weight, a.o.weight.T], shape.kv_groups)


def _norms(weights: list[torch.Tensor], units: int) -> torch.Tensor:
    """Norm over all of a unit's weights; each matrix is `[units * features, hidden]`."""
    squares = [weight.float().square().reshape(units, -1).sum(1) for weight in weights]
    return torch.stack(squares).sum(0).sqrt().cpu()
