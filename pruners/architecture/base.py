"""Where the parts of a model are: one set of names for all model families.

Pruning and serving read a `transformers` model only through these classes.
"""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from pruners.support.errors import UserError
from pruners.support.validation import EXACT

HfModule: TypeAlias = Any
"""A module or configuration of `transformers`; only its adapter knows its attributes."""


class UnsupportedModelError(UserError):
    """The model is of a family or configuration that is not supported. The message is one line."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections of one self-attention block; weights are `[out, in]`.

    `q` is `[heads * head_dim, hidden]`, `k` and `v` `[kv_groups * head_dim, hidden]`, `o`
    `[hidden, heads * head_dim]`. `module` computes `softmax(scale * q k^T) v` and returns a pair:
    the output and the attention weights. `q_norm` and `k_norm` norm each head's features, in
    families that do so. `heads_attribute` and `width_attribute` name the attributes of `module`
    that hold the number of query heads and of their features, if the family has them.
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

    `gate` and `up` have weights `[ffn, hidden]`, `down` `[hidden, ffn]`. `gate` is None in families
    without one; every served family has one.
    """

    gate: nn.Linear | Any
    up: nn.Linear
    down: nn.Linear

    @property
    def inputs(self) -> list[nn.Linear]:
        """Return the projections whose outputs are the neurons."""
        return [self.up] if self.gate is None else [self.gate, self.up]


@dataclass(frozen=True, slots=True)
class LocatedLayer:
    """The parts of one layer.

    `attention_norm` and `mlp_norm` norm the inputs of the two blocks; in families that norm after
    the residual sum, such as BERT, they norm that sum. The `*_out_norm` norm a block's output
    before the residual sum, in families that do so. With sliding attention, a token attends to
    `window` tokens including itself. `rope_layer_type` selects the layer's rotary tables, in
    families that have several.
    """

    module: nn.Module
    attention: Attention
    mlp: Mlp
    attention_norm: nn.Module
    mlp_norm: nn.Module
    attention_out_norm: nn.Module | None = None
    mlp_out_norm: nn.Module | None = None
    window: int | None = None
    rope_layer_type: str | None = None

    @property
    def attention_output(self) -> nn.Module:
        """Return the module whose output `[..., hidden]` attention adds to the residual stream."""
        return self.attention_out_norm or self.attention.o

    @property
    def mlp_output(self) -> nn.Module:
        """Return the module whose output `[..., hidden]` the MLP adds to the residual stream."""
        return self.mlp_out_norm or self.mlp.down


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model.

    `kv_groups` is the number of key/value heads of a layer, `heads` that of query heads, `ffn` that
    of neurons; `gated` is whether the feed-forward blocks have a gate.
    """

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
        """Return the number of query heads that share one key/value head."""
        return self.heads // self.kv_groups


@dataclass(frozen=True, slots=True)
class ConfigFields:
    """The names of a family's sizes in its `transformers` configuration.

    `heads` and `kv_groups` are None if the number of heads cannot be set without changing
    `head_dim`. `biases` are the flags that together give every projection a bias.
    `bound_to_layer_index` is whether a layer computes something else at another index.
    `norm_shift` is the constant that the family adds to a norm's stored weight.
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
    """The settings besides weights that the serving engine needs, as `transformers` reads them.

    `activation` is the gate's activation under its `transformers` name, `activation_field` the
    configuration field it comes from. Embeddings are multiplied by `embed_scale`. `rope_types` are
    the `rope_type`s of the rotary tables. `refusals` name, one line each, the settings of this
    model that the engine does not implement; a model with any is not served.
    """

    activation: str
    activation_field: str
    norm_eps: float
    embed_scale: float
    rope_types: frozenset[str]
    refusals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A `transformers` language model and where its parts are.

    `final_norm` maps the last layer's output to the input of `head`; `norm_in_head` is whether it
    lies outside the model's body (`base_model`). `causal` is false for an encoder. `rotary` is None
    if positions are embedded, `serving` is None in families that are not served.
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
        self, positions: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rotary tables cos and sin, each `[positions, head_dim]`.

        `positions` are integers `[positions]`; `layer_type` is a layer's `rope_layer_type`.
        """
        device = self.embed.weight.device
        types = () if layer_type is None else (layer_type,)
        cos, sin = self.rotary(self.embed.weight[:1, None], positions[None].to(device), *types)
        return cos[0], sin[0]

    def rope_frequencies(self, layer_type: str | None = None) -> tuple[torch.Tensor, float]:
        """Return the inverse frequencies, fp32 `[head_dim / 2]`, and what cos and sin are times.

        `layer_type` is a layer's `rope_layer_type`.
        """
        kind = "" if layer_type is None else f"{layer_type}_"
        scaling = getattr(self.rotary, f"{kind}attention_scaling")
        return getattr(self.rotary, f"{kind}inv_freq"), float(scaling)
