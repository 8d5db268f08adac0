"""The base's weights in the layout that makes every variant a prefix."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.architecture import Shape
from server.engine.backends.pytorch.linear import DenseLinear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
"""By the name in a model's configuration."""


class Norm:
    """RMS norm with the rounding order of `transformers`: normalise in fp32, round, scale."""

    def __init__(self, weight: Tensor, eps: float, dtype: torch.dtype) -> None:
        self.weight = weight
        self.eps = eps
        self.dtype = dtype

    def to(self, device: torch.device) -> "Norm":
        """The same on another device."""
        return Norm(self.weight.to(device), self.eps, self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalises the last dimension of `x`."""
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight.dtype == torch.float32:  # Gemma scales before it rounds
            return (normed * self.weight).to(self.dtype)
        return self.weight * normed.to(self.dtype)


@dataclass(slots=True)
class LayerWeights:
    """One layer. `qkv` holds, group after group, the query heads, key and value of that group.

    So a prefix of KV groups is a run of rows of `qkv` and of columns of `o`, and a prefix of FFN
    neurons a run of rows of `gate` and `up` and of columns of `down`.
    """

    attention_norm: Norm
    qkv: DenseLinear
    qk_norm: Norm | None
    o: DenseLinear
    attention_out_norm: Norm | None
    mlp_norm: Norm
    gate: DenseLinear
    up: DenseLinear
    down: DenseLinear
    mlp_out_norm: Norm | None
    window: int | None
    rope: str | None

    def to(self, device: torch.device) -> "LayerWeights":
        """The same on another device."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, part in parts.items():
            if isinstance(part, DenseLinear | Norm):
                parts[name] = part.to(device)
        return LayerWeights(**parts)


@dataclass(slots=True)
class BaseWeights:
    """Everything the decoder reads. `rope[kind]` is cos and signed sin, each `[positions, dim]`."""

    shape: Shape
    dtype: torch.dtype
    embed: Tensor
    embed_scale: float
    layers: list[LayerWeights]
    final_norm: Norm
    head: DenseLinear
    rope: dict[str | None, tuple[Tensor, Tensor]]
    softmax_scale: float
    activation_name: str
    context: int

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """Of the gate."""
        return ACTIVATIONS[self.activation_name]

    @property
    def precision(self) -> str:
        """Such as `float32`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        return self.embed.device

    @property
    def rope_kinds(self) -> list[str | None]:
        """Of each layer."""
        return [layer.rope for layer in self.layers]

    def to(self, device: torch.device) -> "BaseWeights":
        """The same on another device."""
        head = self.head.to(device)
        tied = self.embed.data_ptr() == self.head.weight.data_ptr()
        return replace(
            self,
            embed=head.weight if tied else self.embed.to(device),
            layers=[layer.to(device) for layer in self.layers],
            final_norm=self.final_norm.to(device),
            head=head,
            rope={kind: (c.to(device), s.to(device)) for kind, (c, s) in self.rope.items()},
        )

    def rope_at(self, positions: Tensor) -> dict[str | None, tuple[Tensor, Tensor]]:
        """cos and signed sin by kind, each `[positions, 1, 1, dim]`."""
        return {
            kind: (
                cos.index_select(0, positions)[:, None, None],
                sin.index_select(0, positions)[:, None, None],
            )
            for kind, (cos, sin) in self.rope.items()
        }

    def tensors(self) -> list[Tensor]:
        """Every resident weight tensor, tied ones once."""
        found = [self.embed, self.final_norm.weight, *self.head.tensors()]
        for layer in self.layers:
            for part in (layer.qkv, layer.o, layer.gate, layer.up, layer.down):
                found += part.tensors()
            norms = (
                layer.attention_norm,
                layer.qk_norm,
                layer.attention_out_norm,
                layer.mlp_norm,
                layer.mlp_out_norm,
            )
            found += [norm.weight for norm in norms if norm is not None]
        return list({t.data_ptr(): t for t in found}.values())
