"""The importance order of a model's units, and the permutation that makes each width a prefix."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from pruners.architecture import LocatedModel, Shape


@dataclass(frozen=True, slots=True)
class Order:
    """The units of each layer, most important first.

    `ffn` are neurons, int64 `[layers, ffn]`; `kv` are KV groups, int64 `[layers, kv_groups]`.
    """

    ffn: torch.Tensor
    kv: torch.Tensor

    def digest(self) -> str:
        """Return 32 hexadecimal digits that identify the order."""
        digest = hashlib.sha256()
        for order in (self.ffn, self.kv):
            digest.update(order.to(torch.int32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]


def identity_order(shape: Shape) -> Order:
    """Return the order that leaves every unit in its place."""
    return Order(
        torch.arange(shape.ffn).repeat(shape.layers, 1),
        torch.arange(shape.kv_groups).repeat(shape.layers, 1),
    )


def reorder_units(located: LocatedModel, order: Order) -> None:
    """Permute neurons and KV groups in place; the model computes the same up to rounding.

    A KV group moves with its query heads, so that each query head keeps its key/value head. The
    norms of single heads are shared by all heads and need no permutation; those that join all heads
    have a weight for each feature, which moves too.
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
        if attention.norms_all_heads:
            _permute_norm(attention.q_norm, feature_indices(kv, queries))
            _permute_norm(attention.k_norm, feature_indices(kv, shape.head_dim))


def feature_indices(units: torch.Tensor, size: int) -> torch.Tensor:
    """Return the indices of the `size` adjacent features of each unit, in the order of `units`.

    `units` are int64 `[units]`, the result is int64 `[units * size]`.
    """
    return (units[:, None] * size + torch.arange(size)).flatten()


@torch.no_grad()
def _permute_outputs(linear: nn.Linear, index: torch.Tensor) -> None:
    linear.weight.copy_(linear.weight[index])
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[index])


@torch.no_grad()
def _permute_inputs(linear: nn.Linear, index: torch.Tensor) -> None:
    linear.weight.copy_(linear.weight[:, index])


@torch.no_grad()
def _permute_norm(norm: nn.Module | None, index: torch.Tensor) -> None:
    for weight in () if norm is None else norm.parameters():
        weight.copy_(weight[index])
