"""The importance order of a base, and the exact permutation that turns widths into prefixes."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from pruners.architecture import LocatedModel, Shape


@dataclass(frozen=True, slots=True)
class Order:
    """Most important first: `ffn` is `[layers, ffn]`, `kv` is `[layers, kv_groups]`, int64."""

    ffn: torch.Tensor
    kv: torch.Tensor

    def digest(self) -> str:
        """Equal for equal orders: 32 hexadecimal digits."""
        digest = hashlib.sha256()
        for order in (self.ffn, self.kv):
            digest.update(order.to(torch.int32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


def identity_order(shape: Shape) -> Order:
    """The order of a base that has been reordered already."""
    return Order(
        torch.arange(shape.ffn).repeat(shape.layers, 1),
        torch.arange(shape.kv_groups).repeat(shape.layers, 1),
    )


def reorder_units(located: LocatedModel, order: Order) -> None:
    """Permutes FFN neurons and KV groups in place; the model computes the same up to rounding.

    A KV group moves as a whole, with its query heads, so that grouped-query attention keeps its
    pairing. Norms on single heads are shared by all heads and stay.
    """
    shape = located.shape
    queries = shape.queries_per_group * shape.head_dim
    for layer, ffn, kv in zip(located.layers, order.ffn, order.kv, strict=True):
        attention, mlp = layer.attention, layer.mlp
        for projection in mlp.inputs:
            _permute_outputs(projection, ffn)
        _permute_inputs(mlp.down, ffn)
        _permute_outputs(attention.q, feature_indices(kv, queries))
        _permute_outputs(attention.k, feature_indices(kv, shape.head_dim))
        _permute_outputs(attention.v, feature_indices(kv, shape.head_dim))
        _permute_inputs(attention.o, feature_indices(kv, queries))


def feature_indices(units: torch.Tensor, size: int) -> torch.Tensor:
    """Indices of the `size` adjacent features of each unit, in the order of the units."""
    return (units[:, None] * size + torch.arange(size)).flatten()


@torch.no_grad()
def _permute_outputs(linear: nn.Linear, index: torch.Tensor) -> None:
    linear.weight.copy_(linear.weight[index])
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[index])


@torch.no_grad()
def _permute_inputs(linear: nn.Linear, index: torch.Tensor) -> None:
    linear.weight.copy_(linear.weight[:, index])
