"""The base's weights in PyTorch tensors, in the layout in which every variant is a prefix."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.architecture import Shape
from server.engine.backends.pytorch.linear import SliceableLinear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
"""Activations of the gate, by the name in a model's configuration."""


class RMSNorm:
    """RMS norm in the order of `transformers`: normalise in fp32, round to `dtype`, scale."""

    def __init__(self, weight: Tensor, eps: float, dtype: torch.dtype) -> None:
        self.weight = weight
        self.eps = eps
        self.dtype = dtype

    def of_last(self) -> "RMSNorm":
        """Return the norm of the last vector only, for a weight `[vectors, size]`."""
        return RMSNorm(self.weight[-1:], self.eps, self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`, `[..., size]`; the result has the norm's `dtype`."""
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight.dtype == torch.float32:  # some families scale before they round
            return (normed * self.weight).to(self.dtype)
        return self.weight * normed.to(self.dtype)


class WideNorm(RMSNorm):
    """RMS norm of queries over all their heads, and of keys over theirs.

    `weight` is `[kv_groups, queries_per_group + 1, head_dim]`: for each group its queries' weights,
    then its key's.
    """

    def of_last(self) -> RMSNorm:
        """Return the norm of the keys only, `[rows, kv_groups, 1, head_dim]`."""
        return WideNorm(self.weight[:, -1:], self.eps, self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise queries and keys, `[rows, kv_groups, queries_per_group + 1, head_dim]`."""
        sizes, parts = [x.shape[2] - 1, 1], []
        for heads, weight in zip(x.split(sizes, 2), self.weight.split(sizes, 1), strict=True):
            flat = RMSNorm(weight.flatten(), self.eps, self.dtype)(heads.flatten(1))
            parts.append(flat.view(heads.shape))
        return torch.cat(parts, dim=2)


Part = TypeVar("Part")
"""A linear layer: as it was read, or as a backend computes with it."""


@dataclass(slots=True)
class LayerParts(Generic[Part]):
    """One layer. `qkv` holds, group after group, the query heads, key and value of that group.

    So a prefix of KV groups is a range of rows of `qkv` and of columns of `o`, and a prefix of FFN
    neurons a range of rows of `gate` and `up` and of columns of `down`. `attention_norm` and
    `mlp_norm` are None where blocks read the residual stream as it is. `qk_norm` normalises each
    head of a group's queries and its key, or as a `WideNorm` all of them together. `window` is the
    length of sliding attention in tokens; `rope` is the kind of rotary embedding.
    """

    attention_norm: RMSNorm | None
    qkv: Part
    qk_norm: RMSNorm | None
    o: Part
    attention_out_norm: RMSNorm | None
    mlp_norm: RMSNorm | None
    gate: Part
    up: Part
    down: Part
    mlp_out_norm: RMSNorm | None
    window: int | None
    rope: str | None

    @property
    def norms(self) -> dict[str, RMSNorm]:
        """Return the norms that the layer has, by the names of the fields."""
        return {name: norm for name, norm in self.fields().items() if isinstance(norm, RMSNorm)}

    def fields(self) -> dict[str, Any]:
        """Return all parts by the names of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(slots=True)
class LayerWeights(LayerParts[SliceableLinear]):
    """One layer in PyTorch tensors."""

    @property
    def matrices(self) -> tuple[SliceableLinear, ...]:
        """Return the five projections."""
        return (self.qkv, self.o, self.gate, self.up, self.down)

    def attention_tensors(self) -> list[Tensor]:
        """Return the tensors of `qkv` and `o`."""
        return [*self.qkv.tensors(), *self.o.tensors()]

    def mlp_tensors(self) -> list[Tensor]:
        """Return the tensors of `gate`, `up` and `down`."""
        return [*self.gate.tensors(), *self.up.tensors(), *self.down.tensors()]


@dataclass(slots=True)
class PyTorchWeights:
    """Everything that the PyTorch decoder reads of a base.

    `embed` is `[vocab, hidden]`. `rope[kind]` is cos and sin, each `[positions, rotated]` for so
    many first features of a head; the first half of sin has its sign changed. `residual_scale` is
    what a block's output is multiplied by before the residual sum. `context` is the largest number
    of tokens of a prompt and its answer.
    """

    shape: Shape
    dtype: torch.dtype
    embed: Tensor
    embed_scale: float
    layers: list[LayerWeights]
    final_norm: RMSNorm
    head: SliceableLinear
    rope: dict[str | None, tuple[Tensor, Tensor]]
    softmax_scale: float
    residual_scale: float
    activation_name: str
    context: int

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """Return the activation of the gate."""
        return ACTIVATIONS[self.activation_name]

    @property
    def precision(self) -> str:
        """Return the name of the dtype, such as `float32`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Return the device on which all weights are."""
        return self.embed.device

    @property
    def supports_int8_cache(self) -> bool:
        """Return False: keys and values are kept in the dtype of the weights."""
        return False

    @property
    def selects_pages(self) -> bool:
        """Return False: every token attends to all that is cached."""
        return False

    @property
    def rope_kinds(self) -> list[str | None]:
        """Return the kind of rotary embedding of each layer."""
        return [layer.rope for layer in self.layers]

    @property
    def tied(self) -> bool:
        """Return whether the head is the embedding."""
        return self.embed.data_ptr() == self.head.weight.data_ptr()

    def rope_at(self, positions: Tensor) -> dict[str | None, tuple[Tensor, Tensor]]:
        """Return cos and sin by kind, `[rows, 1, 1, rotated]` each, at positions `[rows]`."""
        return {
            kind: (
                cos.index_select(0, positions)[:, None, None],
                sin.index_select(0, positions)[:, None, None],
            )
            for kind, (cos, sin) in self.rope.items()
        }

    def head_tensors(self, rows: int) -> list[Tensor]:
        """Return the tensors of the head, all of which is read for any number of rows."""
        return self.head.tensors()

    def tensors(self) -> list[Tensor]:
        """Return every resident weight tensor, tied ones once."""
        found = [self.embed, self.final_norm.weight, *self.head.tensors()]
        for layer in self.layers:
            found += [*layer.attention_tensors(), *layer.mlp_tensors()]
            found += [norm.weight for norm in layer.norms.values()]
        return list({t.data_ptr(): t for t in found}.values())
