"""The maps of readers in the order of the served KV groups, for the PyTorch decoder."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.architecture import Shape
from pruners.reading.maps import KVMaps, features
from server.engine.backends.pytorch.linear import SliceableLinear
from server.engine.backends.pytorch.weights import PyTorchWeights


@dataclass(frozen=True, slots=True)
class PyTorchMaps:
    """The maps of one depth: for each layer from there on, its keys and values by KV group.

    The outputs of a layer are `kv_groups * 2 * head_dim`: each group's key and its value.
    """

    layers: list[SliceableLinear]

    def features(self, x: Tensor) -> Tensor:
        """Return what the maps read of hidden states `[rows, hidden]`, in the maps' dtype."""
        return features(x)[:, :-1].to(self.layers[0].weight.dtype)

    def tensors(self) -> list[Tensor]:
        """Return every resident tensor."""
        return [tensor for layer in self.layers for tensor in layer.tensors()]


PyTorchMapsByDepth = dict[int, PyTorchMaps]


def convert_maps(
    weights: PyTorchWeights, maps: Mapping[int, KVMaps], order: Tensor | None
) -> PyTorchMapsByDepth:
    """Bring maps into the layout, the dtype and to the device of the weights.

    `order` is that of the served KV groups, int `[layers, kv_groups]`. A reader as deep as the
    model needs no maps.
    """
    needed = {depth: one for depth, one in maps.items() if depth < weights.shape.layers}
    return {depth: _convert(weights, one, order) for depth, one in needed.items()}


def _convert(weights: PyTorchWeights, maps: KVMaps, order: Tensor | None) -> PyTorchMaps:
    check_maps(maps, weights.shape)
    fused = by_group(maps.weight.float(), maps.depth, weights.shape, order).flatten(1, 3)
    fused = fused.to(weights.device, weights.dtype)
    return PyTorchMaps([SliceableLinear(w[:, :-1].contiguous(), w[:, -1].clone()) for w in fused])


def check_maps(maps: KVMaps, shape: Shape) -> None:
    """Raise `ValueError` for maps of another model."""
    size = (shape.layers - maps.depth, 2 * shape.kv_groups * shape.head_dim, shape.hidden + 1)
    if not 0 < maps.depth < shape.layers or maps.weight.shape != size:
        raise ValueError(f"the maps of depth {maps.depth} are not of this model")


def by_group(part: Tensor, depth: int, shape: Shape, order: Tensor | None) -> Tensor:
    """Split the rows of `[layers above, 2 * kv, size]`, which is of maps of one `depth`.

    Returns `[layers above, kv_groups, 2, head_dim, size]`: keys, then values. Groups stand in the
    order in which they are served.
    """
    split = part.unflatten(1, (2, shape.kv_groups, shape.head_dim)).transpose(1, 2)
    if order is None:
        return split
    return split[torch.arange(shape.layers - depth)[:, None], order[depth:].long()]
