"""Linear maps from the hidden state at one depth to the keys and values of the layers above."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class KVMaps:
    """The maps of one depth, `weight` fp32 `[layers above, 2 * kv, hidden + 1]`.

    A token's keys (before their norm, if there is one, and before rotation) and values in layer
    `depth + i` are the two halves of `weight[i] @ features(h)`, where h is the input of layer
    `depth`. `kv` is the number of KV groups times the head size.
    """

    depth: int
    weight: Tensor

    def keys_values(self, layer: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values `[..., kv]` of `layer` for `features` `[..., hidden + 1]`."""
        keys, values = (features @ self.weight[layer - self.depth].to(features).T).chunk(2, -1)
        return keys, values

    def quantised(self) -> "KVMaps":
        """Return the maps as they are stored: 8 bits a number, one scale a row."""
        codes, scales = _to_int8(self.weight)
        return KVMaps(self.depth, codes.float() * scales)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what a file holds: int8 `codes` and fp32 `scales` `[layers, 2 * kv, 1]`."""
        codes, scales = _to_int8(self.weight)
        return {f"{self.depth}.codes": codes, f"{self.depth}.scales": scales}


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[int, KVMaps]:
    """Return the maps of a file by depth. Raise `ValueError` for tensors that are no maps."""
    found = {}
    for name, codes in tensors.items():
        depth, _, kind = name.partition(".")
        if kind != "codes":
            continue
        scales = tensors.get(f"{depth}.scales")
        if not depth.isdigit() or scales is None or codes.dtype != torch.int8 or codes.dim() != 3:
            raise ValueError(f"'{name}' is no map of keys and values")
        if scales.shape != (*codes.shape[:2], 1) or codes.shape[1] % 2:
            raise ValueError(f"'{name}' and its scales do not fit each other")
        found[int(depth)] = KVMaps(int(depth), codes.float() * scales)
    return found


def features(hidden: Tensor) -> Tensor:
    """Return fp32 `[..., hidden + 1]`: `hidden` over its root mean square, and a constant 1."""
    hidden = hidden.float()
    scale = hidden.square().mean(-1, keepdim=True).add(1e-6).rsqrt()
    return torch.cat([hidden * scale, torch.ones_like(scale)], dim=-1)


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales; scales of 17 bits, so that what they stand for gives them again."""
    fraction, exponent = torch.frexp(weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127)
    scales = torch.ldexp((fraction * 2**17).round() / 2**17, exponent)
    return (weight / scales).round().to(torch.int8).contiguous(), scales
