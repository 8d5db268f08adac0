"""The maps of readers in packed matrices, as the native kernels apply them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.architecture import Shape
from pruners.reading.maps import KVMaps
from server.engine.backends.native.packing import BLOCK, PackedMatrix, pack, quantise
from server.engine.backends.pytorch.kv_maps import by_group


@dataclass(frozen=True, slots=True)
class PackedMaps:
    """The maps of one depth in 8 bits: one matrix for all layers from there on.

    Its outputs are each layer's and KV group's key and value, padded to a multiple of 16.
    """

    matrix: PackedMatrix

    def tensors(self) -> list[Tensor]:
        """Return every resident tensor."""
        return self.matrix.tensors()


PackedMapsByDepth = dict[int, PackedMaps]


def pack_maps(shape: Shape, maps: Mapping[int, KVMaps], order: Tensor | None) -> PackedMapsByDepth:
    """Pack maps by depth. `order` is that of the served KV groups, int `[layers, kv_groups]`.

    A reader as deep as the model needs no maps.
    """
    needed = {depth: one for depth, one in maps.items() if depth < shape.layers}
    return {depth: _pack(shape, one, order) for depth, one in needed.items()}


def _pack(shape: Shape, maps: KVMaps, order: Tensor | None) -> PackedMaps:
    grouped = by_group(maps, shape, order).flatten(2, 3)  # [layers, groups, 2 * dim, hidden + 1]
    rows = F.pad(grouped, (0, 0, 0, -grouped.shape[2] % BLOCK)).flatten(0, 2)
    return PackedMaps(pack(quantise(rows[:, :-1], 8), rows[:, -1]))
