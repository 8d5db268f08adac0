"""Llama and the families with the same modules: Mistral, Ministral, Qwen2, Qwen3, SmolLM."""

from collections.abc import Callable
from dataclasses import replace

from pruners.architecture.base import (
    Attention,
    ConfigFields,
    HfModule,
    LocatedLayer,
    LocatedModel,
    Mlp,
    ServingConfig,
    Shape,
)

NAMES = ConfigFields(heads="num_attention_heads", kv_groups="num_key_value_heads")
BIASED_NAMES = replace(NAMES, biases=("attention_bias", "mlp_bias"))
"""Of families whose configuration says that every projection has a bias."""

Windows = list[int | None]
"""The attention window of each layer in tokens; None is full attention."""


def shape_of(config: HfModule) -> Shape:
    """Return the sizes in a Llama-like `transformers` configuration."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    return Shape(
        layers=config.num_hidden_layers,
        hidden=hidden,
        heads=heads,
        kv_groups=config.num_key_value_heads,
        # All these families read `head_dim`, though Qwen2's configuration does not declare it.
        head_dim=getattr(config, "head_dim", hidden // heads),
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
    )


def attention_of(module: HfModule, normed: bool) -> Attention:
    """Locate a Llama-like attention module's projections; `normed` is whether heads have norms."""
    return Attention(
        q=module.q_proj,
        k=module.k_proj,
        v=module.v_proj,
        o=module.o_proj,
        module=module,
        scale=module.scaling,
        q_norm=module.q_norm if normed else None,
        k_norm=module.k_norm if normed else None,
    )


def mlp_of(module: HfModule) -> Mlp:
    """Locate the projections of a Llama-like gated feed-forward module."""
    return Mlp(gate=module.gate_proj, up=module.up_proj, down=module.down_proj)


def windows_by_layer(config: HfModule) -> Windows:
    """Return each layer's attention window in tokens, None for full attention, by `layer_types`."""
    return [
        config.sliding_window if kind == "sliding_attention" else None
        for kind in config.layer_types
    ]


def windows_everywhere(config: HfModule) -> Windows:
    """Return the same attention window in tokens for every layer, ignoring `layer_types`."""
    return [config.sliding_window] * config.num_hidden_layers


def no_windows(config: HfModule) -> Windows:
    """Return None for every layer: full attention."""
    return [None] * config.num_hidden_layers


_WINDOWS: dict[str, Callable[[HfModule], Windows]] = {
    "llama": no_windows,
    "mistral": windows_everywhere,
    "ministral": windows_by_layer,
    "qwen2": windows_by_layer,
    "qwen3": windows_by_layer,
}
FAMILIES = tuple(_WINDOWS)


def is_causal(config: HfModule) -> bool:
    """Return whether `transformers` applies a causal mask; it reads this field in every family."""
    return bool(getattr(config, "is_causal", True))


def list_refusals(config: HfModule, windows: Windows, layer_types: list[str]) -> list[str]:
    """Return why a Llama-like model cannot be served, one line a reason, or an empty list.

    `layer_types` are those that its family reads.
    """
    refusals = []
    if not is_causal(config):
        refusals.append(f"is_causal {config.is_causal} is not supported")
    groups = config.num_key_value_heads
    if groups < 1 or config.num_attention_heads % groups:
        refusals.append(f"num_key_value_heads {groups} do not divide num_attention_heads")
    for name in sorted(set(layer_types) - {"full_attention", "sliding_attention"}):
        refusals.append(f"layer_types with '{name}' is not supported")
    if "sliding_attention" in layer_types and config.sliding_window is None:
        refusals.append("layer_types has sliding_attention, but sliding_window is not set")
    if any(window is not None and window < 1 for window in windows):
        refusals.append(f"sliding_window {config.sliding_window} is not a number of tokens")
    return refusals


def layer_of(module: HfModule, normed: bool = False) -> LocatedLayer:
    """Locate the parts of a Llama-like layer; `normed` is whether heads have norms."""
    return LocatedLayer(
        module=module,
        attention=attention_of(module.self_attn, normed),
        mlp=mlp_of(module.mlp),
        attention_norm=module.input_layernorm,
        mlp_norm=module.post_attention_layernorm,
    )


def model_of(
    model: HfModule, layers: list[LocatedLayer], layer_types: list[str], names: ConfigFields = NAMES
) -> LocatedModel:
    """Locate the parts of a Llama-like `*ForCausalLM` around its layers.

    `layer_types` are those that its family reads, `names` those of its configuration.
    """
    config, body = model.config, model.model
    windows = [layer.window for layer in layers]
    return LocatedModel(
        family=config.model_type,
        model=model,
        shape=shape_of(config),
        layers=layers,
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head,
        rotary=body.rotary_emb,
        names=names,
        causal=is_causal(config),
        serving=ServingConfig(
            activation=config.hidden_act,
            activation_field="hidden_act",
            norm_eps=config.rms_norm_eps,
            rope_types=frozenset({body.rotary_emb.rope_type}),
            refusals=tuple(list_refusals(config, windows, layer_types)),
        ),
    )


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of a `*ForCausalLM` of these families."""
    config = model.config
    family = config.model_type
    windows = _WINDOWS[family](config)
    layers = [
        replace(layer_of(layer, normed=family == "qwen3"), window=window)
        for layer, window in zip(model.model.layers, windows, strict=True)
    ]
    layer_types = config.layer_types if _WINDOWS[family] is windows_by_layer else []
    return model_of(model, layers, layer_types, BIASED_NAMES if family == "llama" else NAMES)
