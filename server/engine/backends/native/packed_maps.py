"""The maps of readers in packed matrices, as the native kernels apply them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.architecture import Shape
from pruners.reading.maps import KVMaps
from server.engine.backends.native.packing import BLOCK, GROUP, Codes, PackedMatrix, pack
from server.engine.backends.pytorch.kv_maps import by_group, check_maps


@dataclass(frozen=True, slots=True)
class PackedMaps:
    """The maps of one depth in 4 bits: one matrix for all layers from there on.

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
    """Pack the codes that the maps are stored in, without another rounding."""
    check_maps(maps, shape)
    codes = maps.quantised().codes
    assert codes is not None

    def rows(part: Tensor) -> Tensor:
        """From `[layers, 2 * kv, size]` to the rows of the matrix, `[outputs, size]`."""
        grouped = by_group(part, maps.depth, shape, order).flatten(2, 3)
        return F.pad(grouped, (0, 0, 0, -grouped.shape[2] % BLOCK)).flatten(0, 2)

    whole = F.pad(rows(codes.codes), (0, -shape.hidden % GROUP))
    found = Codes(4, whole, rows(codes.scales), rows(codes.minima), shape.hidden)
    return PackedMaps(pack(found, rows(codes.bias[..., None])[:, 0]))
