"""Where a model's parts live: the one vocabulary of pruning and serving for every family."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from pruners.support.errors import UserError
from pruners.support.validation import EXACT

HfModule: TypeAlias = Any
"""A module of `transformers`; what its attributes are is known to its family's adapter only."""


class UnsupportedModelError(UserError):
    """The model's family, or something in its configuration, is not supported. One clear line."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections of one self-attention block. Weights are `[out, in]`.

    `module` is what computes attention from `q`, `k` and `v`; it returns a pair whose second part
    are the attention weights. Scores are `scale * q k^T`. The module keeps its number of query
    heads in `heads_attribute` and their features in `width_attribute`, where the family has them.
    """

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    module: nn.Module
    scale: float
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
class LocatedLayer:
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
    def attention_output(self) -> nn.Module:
        """The module whose output is what attention adds to the residual stream."""
        return self.attention_out_norm or self.attention.o

    @property
    def mlp_output(self) -> nn.Module:
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
    __pydantic_config__ = EXACT

    @property
    def queries_per_group(self) -> int:
        return self.heads // self.kv_groups


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """What a family's configuration calls its sizes.

    `heads` and `kv_groups` are None where the configuration cannot say how many heads there are
    without changing their size. `biases` are the fields that together give every projection a bias.
    `bound_to_layer_index` says that a layer computes differently elsewhere. `norm_shift` is what
    the family adds to a norm's stored weight.
    """

    layers: str = "num_hidden_layers"
    ffn: str = "intermediate_size"
    heads: str | None = None
    kv_groups: str | None = None
    biases: tuple[str, ...] = ()
    bound_to_layer_index: bool = False
    norm_shift: float = 0.0


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """What a served family computes with besides its weights, as its own modelling code reads it.

    `activation` is the gate's, by the name that `transformers` has for it, and `activation_field`
    where the configuration says it. Embeddings are multiplied by `embed_scale`. `rope_types` are
    the ways in which rotary tables are made. `refusals` say, one line each with the field's name,
    what the family reads and serving does not do; a model that has any is not served.
    """

    activation: str
    activation_field: str
    norm_eps: float
    embed_scale: float
    rope_types: frozenset[str]
    refusals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A language model taken apart.

    `final_norm` takes the last layer's output to the input of `head`; `norm_in_head` says that it
    stands outside the model's body. `causal` is false in an encoder, where every token sees every
    other. `rotary` is None where positions are embedded, `serving` in families that are not served.
    """

    family: str
    model: PreTrainedModel
    shape: Shape
    layers: list[LocatedLayer] = field(repr=False)
    embed: nn.Embedding
    final_norm: nn.Module
    head: nn.Linear
    rotary: nn.Module | Any
    names: ConfigFields
    norm_in_head: bool = False
    causal: bool = True
    serving: ServingConfig | None = None

    def rope_tables(
        self, positions: torch.Tensor, kind: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, each `[positions, head_dim]`, of a family with rotary embeddings."""
        device = self.embed.weight.device
        kinds = () if kind is None else (kind,)
        cos, sin = self.rotary(self.embed.weight[:1, None], positions[None].to(device), *kinds)
        return cos[0], sin[0]
