"""Linear maps from the hidden state at one depth to the keys and values of the layers above."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.reading.codes import GROUP, MapCodes, pack_pairs, round_maps, unpack_pairs

_PARTS = {
    "codes": torch.uint8,
    "scales": torch.float16,
    "minima": torch.float16,
    "bias": torch.float32,
}
"""The tensors of a depth in a file, and their types."""


@dataclass(frozen=True, slots=True)
class KVMaps:
    """The maps of one depth, `weight` fp32 `[layers above, 2 * kv, hidden + 1]`.

    A token's keys (before their norm, if there is one, and before rotation) and values in layer
    `depth + i` are the two halves of `weight[i] @ features(h)`, where h is the input of layer
    `depth`. `kv` is the number of KV groups times the head size. Maps that are stored or served are
    in 4 bits: `codes` are then those that `weight` stands for.
    """

    depth: int
    weight: Tensor
    codes: MapCodes | None = None

    def keys_values(self, layer: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values `[..., kv]` of `layer` for `features` `[..., hidden + 1]`."""
        keys, values = (features @ self.weight[layer - self.depth].to(features).T).chunk(2, -1)
        return keys, values

    def quantised(self, moment: Tensor | None = None) -> "KVMaps":
        """Return the maps as they are stored, with their codes; the same maps if they have some.

        `moment` is E[x x^T] of the features, see `round_maps`.
        """
        if self.codes is not None:
            return self
        codes = round_maps(self.weight, moment)
        return KVMaps(self.depth, codes.values(), codes)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what a file holds of the quantised maps, two codes in a byte."""
        codes = self.quantised().codes
        assert codes is not None
        parts = (pack_pairs(codes.codes), codes.scales, codes.minima, codes.bias)
        return {f"{self.depth}.{name}": part for name, part in zip(_PARTS, parts, strict=True)}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[int, KVMaps]:
    """Return the maps of a file by depth. Raise `ValueError` for tensors that are no maps."""
    found: dict[int, KVMaps] = {}
    for name in tensors:
        depth, _, kind = name.partition(".")
        if not depth.isdecimal() or kind not in _PARTS:
            raise ValueError(f"'{name}' is no part of maps to keys and values")
        if int(depth) not in found:
            codes = _codes_of(depth, tensors)
            found[int(depth)] = KVMaps(int(depth), codes.values(), codes)
    return found


def _codes_of(depth: str, tensors: Mapping[str, Tensor]) -> MapCodes:
    """Return the codes of one depth. Raise `ValueError` for parts that do not fit each other."""
    parts = []
    for kind, dtype in _PARTS.items():
        part = tensors.get(f"{depth}.{kind}")
        if part is None or part.dtype != dtype:
            raise ValueError(f"the maps of depth {depth} have no '{depth}.{kind}' in {dtype}")
        parts.append(part)
    pairs, scales, minima, bias = parts
    if pairs.dim() == 3:
        layers, kv, hidden = pairs.shape
        groups = (layers, 2 * kv, -(-hidden // GROUP))
        if scales.shape == minima.shape == groups and bias.shape == (layers, 2 * kv):
            return MapCodes(unpack_pairs(pairs), scales, minima, bias)
    raise ValueError(f"the parts of the maps of depth {depth} do not fit each other")


def features(hidden: Tensor) -> Tensor:
    """Return fp32 `[..., hidden + 1]`: `hidden` over its root mean square, and a constant 1."""
    hidden = hidden.float()
    scale = hidden.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    return torch.cat([hidden * scale, torch.ones_like(scale)], dim=-1)
