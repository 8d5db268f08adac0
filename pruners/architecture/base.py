"""Where the parts of a model are: one set of names for all model families.

Pruning and serving read a `transformers` model only through these classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from pruners.support.errors import UserError
from pruners.support.validation import EXACT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HfModule: TypeAlias = Any
"""A module or configuration of `transformers`; only its adapter knows its attributes."""


NO_ROPE = "none"
"""The `rope_layer_type` of layers without rotary embedding: their tables change nothing."""


class UnsupportedModelError(UserError):
    """The model is of a family or configuration that is not supported. The message is one line."""


@dataclass(frozen=True, slots=True)
class Attention:
    """The projections of one self-attention block; weights are `[out, in]`.

    `q` is `[heads * head_dim, hidden]`, `k` and `v` `[kv_groups * head_dim, hidden]`, `o`
    `[hidden, heads * head_dim]`. `module` computes `softmax(scale * q k^T) v` and returns a pair:
    the output and the attention weights. `q_norm` and `k_norm` norm each head's features, in
    families that do so, or with `norms_all_heads` those of all heads together. `set_heads` tells a
    copy of `module` with fewer KV groups how many query heads it has, in families whose modules
    keep that number.
    """

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    module: nn.Module
    scale: float
    q_norm: nn.Module | None = None
    k_norm: nn.Module | None = None
    norms_all_heads: bool = False
    set_heads: Callable[[HfModule, int], None] | None = None

    @property
    def inputs(self) -> list[nn.Linear]:
        """Return the projections of the block's input."""
        return [self.q, self.k, self.v]

    def query_heads(self, projected: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Return `[..., heads, head_dim]` of `q`'s output `[..., heads * head_dim]`, normed."""
        return self._heads(projected, self.q_norm, head_dim)

    def key_heads(self, projected: torch.Tensor, head_dim: int) -> torch.Tensor:
        """Return `[..., kv_groups, head_dim]` of `k`'s output, normed."""
        return self._heads(projected, self.k_norm, head_dim)

    def _heads(
        self, projected: torch.Tensor, norm: nn.Module | None, head_dim: int
    ) -> torch.Tensor:
        if norm is not None and self.norms_all_heads:
            projected = norm(projected)
        heads = projected.unflatten(-1, (-1, head_dim))
        return heads if norm is None or self.norms_all_heads else norm(heads)


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
    the residual sum, such as BERT, they norm that sum, and in those that do neither they are None.
    The `*_out_norm` norm a block's output before the residual sum, in families that do so. The
    output is multiplied by `residual_scale` there. With sliding attention, a token attends to
    `window` tokens including itself. `rope_layer_type` selects the layer's rotary tables, in
    families that have several.
    """

    module: nn.Module
    attention: Attention
    mlp: Mlp
    attention_norm: nn.Module | None
    mlp_norm: nn.Module | None
    attention_out_norm: nn.Module | None = None
    mlp_out_norm: nn.Module | None = None
    residual_scale: float = 1.0
    window: int | None = None
    rope_layer_type: str | None = None

    @property
    def attention_output(self) -> nn.Module:
        """Return the module whose scaled output `[..., hidden]` attention adds to the residual."""
        return self.attention_out_norm or self.attention.o

    @property
    def mlp_output(self) -> nn.Module:
        """Return the module whose scaled output `[..., hidden]` the MLP adds to the residual."""
        return self.mlp_out_norm or self.mlp.down


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model.

    `kv_groups` is the number of key/value heads of a layer, `heads` that of query heads, `ffn` that
    of neurons; `gated` is whether the feed-forward blocks have a gate. `cuts_groups` is whether a
    layer can keep some of its KV groups: where a norm joins all heads, they stay or go together.
    """

    layers: int
    hidden: int
    heads: int
    kv_groups: int
    head_dim: int
    ffn: int
    vocab: int
    gated: bool = True
    cuts_groups: bool = True
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
    `bound_to_layer_index` is whether a layer computes something else at another index. `by_layer`
    are lists with one value for each layer. `norm_shift` is the constant that the family adds to a
    norm's stored weight; `norm_rounds_last` is whether it rounds what it normed only after the
    multiplication by the weight.
    """

    layers: str = "num_hidden_layers"
    ffn: str = "intermediate_size"
    heads: str | None = None
    kv_groups: str | None = None
    biases: tuple[str, ...] = ()
    bound_to_layer_index: bool = False
    by_layer: tuple[str, ...] = ("layer_types",)
    norm_shift: float = 0.0
    norm_rounds_last: bool = False


@dataclass(frozen=True, slots=True)
class ServingConfig:
    """The settings besides weights that the serving engine needs, as `transformers` reads them.

    `activation` is the gate's activation under its `transformers` name, `activation_field` the
    configuration field it comes from. Embeddings are multiplied by `embed_scale`, which some
    families round to the embeddings' dtype, and logits divided by `logits_scale`. `rope_types` are
    the `rope_type`s of the rotary tables; `rotary_dim` is how many features of a head they rotate,
    all if it is None, and `rotates_in_fp32` whether tables beside weights in bf16 stay fp32.
    `refusals` name, one line each, the settings of this model that the engine does not implement; a
    model with any is not served.
    """

    activation: str
    activation_field: str
    norm_eps: float
    rope_types: frozenset[str]
    refusals: tuple[str, ...]
    embed_scale: float = 1.0
    rounds_embed_scale: bool = False
    logits_scale: float = 1.0
    rotary_dim: int | None = None
    rotates_in_fp32: bool = False


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A `transformers` language model and where its parts are.

    `final_norm` maps the last layer's output to the input of `head`; `norm_in_head` is whether it
    lies outside the model's body (`base_model`). `causal` is false for an encoder. `rotary` is None
    if positions are embedded, `serving` is None in families that are not served. `max_context` is
    the number of tokens from which on the rotary tables would be others, if it is less than what
    the configuration allows.
    """

    family: str
    model: "PreTrainedModel"
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
    max_context: int | None = None

    @property
    def context(self) -> int:
        """Return the largest number of tokens of a text."""
        configured: int = self.model.config.max_position_embeddings
        return configured if self.max_context is None else min(configured, self.max_context)

    def rope_tables(
        self, positions: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rotary tables cos and sin, each `[positions, rotated features of a head]`.

        `positions` are integers `[positions]`; `layer_type` is a layer's `rope_layer_type`.
        """
        device = self.embed.weight.device
        types = () if layer_type in (None, NO_ROPE) else (layer_type,)
        cos, sin = self.rotary(self.embed.weight[:1, None], positions[None].to(device), *types)
        if layer_type == NO_ROPE:
            return torch.ones_like(cos[0]), torch.zeros_like(sin[0])
        return cos[0], sin[0]

    def rope_frequencies(self, layer_type: str | None = None) -> tuple[torch.Tensor, float]:
        """Return inverse frequencies, fp32 `[rotated features / 2]`, and a factor of the tables.

        `layer_type` is a layer's `rope_layer_type`. Frequencies that depend on a text's length are
        those of texts no longer than `context`.
        """
        kind = "" if layer_type in (None, NO_ROPE) else f"{layer_type}_"
        inverse: torch.Tensor = getattr(self.rotary, f"{kind}original_inv_freq")
        if layer_type == NO_ROPE:
            return torch.zeros_like(inverse), 1.0
        return inverse, float(getattr(self.rotary, f"{kind}attention_scaling"))
