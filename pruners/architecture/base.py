"""Where a model's parts live: the one vocabulary of pruning and serving for every family."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from pruners.errors import UserError

HfModule: TypeAlias = Any
"""A module of `transformers`; what its attributes are is known to its family's adapter only."""


class UnsupportedModelError(UserError):
    """The model's family, or something in its configuration, is not supported. One clear line."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections of one self-attention block. Weights are `[out, in]`.

    `module` is what computes attention from `q`, `k` and `v`; it returns a pair whose second part
    are the attention weights. It keeps its number of query heads in `heads_attribute` and their
    features in `width_attribute`, where the family has them.
    """

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    module: nn.Module
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    heads_attribute: str | None = None
    width_attribute: str | None = None


@dataclass(frozen=True, slots=True)
class Mlp:
    """One feed-forward block: `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate.

    Every served family has a gate; whoever serves need not ask.
    """

    gate: nn.Linear | Any  # None without a gate
    up: nn.Linear
    down: nn.Linear

    @property
    def inputs(self) -> list[nn.Linear]:
        """The projections whose outputs are the neurons."""
        return [self.up] if self.gate is None else [self.gate, self.up]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `attention_norm` and `mlp_norm` stand in front of their blocks.

    The `*_out_norm` norms exist in families that norm before the residual sum too. In families that
    norm behind the sum, such as BERT, all that stands there is `attention_norm` and `mlp_norm`.
    Where attention slides, a token sees `window` tokens, itself among them. `rope` names the rotary
    tables of the layer, in families that have several.
    """

    module: nn.Module
    attention: Attention
    mlp: Mlp
    attention_norm: nn.Module
    mlp_norm: nn.Module
    attention_out_norm: nn.Module | None = None
    mlp_out_norm: nn.Module | None = None
    window: int | None = None
    rope: str | None = None

    @property
    def attention_join(self) -> nn.Module:
        """The module whose output is what attention adds to the residual stream."""
        return self.attention_out_norm or self.attention.o

    @property
    def mlp_join(self) -> nn.Module:
        """The module whose output is what the MLP adds to the residual stream."""
        return self.mlp_out_norm or self.mlp.down


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model. `kv_groups` is the number of key/value heads, `gated` says how FFNs are."""

    layers: int
    hidden: int
    heads: int
    kv_groups: int
    head_dim: int
    ffn: int
    vocab: int
    gated: bool = True

    @property
    def queries_per_group(self) -> int:
        return self.heads // self.kv_groups


@dataclass(frozen=True, slots=True)
class ConfigNames:
    """What a family's configuration calls its sizes.

    `heads` and `kv_groups` are None where the configuration cannot say how many heads there are
    without changing their size. `layer_bound` says that a layer computes differently elsewhere.
    `norm_shift` is what the family adds to a norm's stored weight.
    """

    layers: str = "num_hidden_layers"
    ffn: str = "intermediate_size"
    heads: str | None = None
    kv_groups: str | None = None
    layer_bound: bool = False
    norm_shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Decoder:
    """A language model taken apart.

    `final_norm` takes the last layer's output to the input of `head`; `norm_in_head` says that it
    stands outside the model's body. `causal` is false in an encoder, where every token sees every
    other. `rotary` is None where positions are embedded.
    """

    family: str
    model: PreTrainedModel
    shape: Shape
    layers: list[Layer] = field(repr=False)
    embed: nn.Embedding
    final_norm: nn.Module
    head: nn.Linear
    rotary: nn.Module | Any
    names: ConfigNames
    norm_in_head: bool = False
    causal: bool = True

    def rope_tables(
        self, positions: torch.Tensor, kind: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, each `[positions, head_dim]`, of a family with rotary embeddings."""
        device = self.embed.weight.device
        kinds = () if kind is None else (kind,)
        cos, sin = self.rotary(self.embed.weight[:1, None], positions[None].to(device), *kinds)
        return cos[0], sin[0]
