"""Where a model's parts live: the one vocabulary of pruning and serving for every family."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn
from transformers import PreTrainedModel

HfModule: TypeAlias = Any
"""A module of `transformers`; what its attributes are is known to its family's adapter only."""


class UnsupportedModelError(ValueError):
    """The model's family, or something in its configuration, is not supported. One clear line."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections of one self-attention block. Weights are `[out, in]`."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None


@dataclass(frozen=True, slots=True)
class Mlp:
    """The projections of one gated feed-forward block: `down(act(gate(x)) * up(x))`."""

    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. The `*_out_norm` norms exist in families that norm before the residual."""

    module: nn.Module
    attention: Attention
    mlp: Mlp
    attention_norm: nn.Module
    mlp_norm: nn.Module
    attention_out_norm: nn.Module | None = None
    mlp_out_norm: nn.Module | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder. `kv_groups` is the number of key/value heads."""

    layers: int
    hidden: int
    heads: int
    kv_groups: int
    head_dim: int
    ffn: int
    vocab: int

    @property
    def queries_per_group(self) -> int:
        return self.heads // self.kv_groups


@dataclass(frozen=True, slots=True)
class Decoder:
    """A causal language model taken apart."""

    family: str
    model: PreTrainedModel
    shape: Shape
    layers: list[Layer] = field(repr=False)
    embed: nn.Embedding
    final_norm: nn.Module
    head: nn.Linear
    rotary: nn.Module
