"""Llama and the families that kept its module names: Mistral, Qwen2, Qwen3, SmolLM."""

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

Windows = list[int | None]


def shape_of(config: HfModule) -> Shape:
    """Sizes from a Llama-like `transformers` configuration."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    return Shape(
        layers=config.num_hidden_layers,
        hidden=hidden,
        heads=heads,
        kv_groups=config.num_key_value_heads,
        # Every one of these families reads a `head_dim`, Qwen2 one that is not among its fields.
        head_dim=getattr(config, "head_dim", hidden // heads),
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
    )


def attention_of(module: HfModule, normed: bool) -> Attention:
    """The projections of a Llama-named attention module; `normed` if heads have their own norms."""
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
    """The projections of a Llama-named gated feed-forward module."""
    return Mlp(gate=module.gate_proj, up=module.up_proj, down=module.down_proj)


def windows_by_layer(config: HfModule) -> Windows:
    """How many tokens a token of each layer sees, where `layer_types` says which layers slide."""
    return [
        config.sliding_window if kind == "sliding_attention" else None
        for kind in config.layer_types
    ]


def windows_everywhere(config: HfModule) -> Windows:
    """The same window in every layer, whatever `layer_types` may say."""
    return [config.sliding_window] * config.num_hidden_layers


def no_windows(config: HfModule) -> Windows:
    """None in any layer."""
    return [None] * config.num_hidden_layers


_WINDOWS: dict[str, Callable[[HfModule], Windows]] = {
    "llama": no_windows,
    "mistral": windows_everywhere,
    "qwen2": windows_by_layer,
    "qwen3": windows_by_layer,
}
FAMILIES = tuple(_WINDOWS)


def is_causal(config: HfModule) -> bool:
    """Whether `transformers` masks what comes later; its masks read this for every family."""
    return bool(getattr(config, "is_causal", True))


def refusals_of(config: HfModule, windows: Windows, layer_types: list[str]) -> list[str]:
    """What keeps a Llama-like model from being served. `layer_types` are those that it reads."""
    found = []
    if not is_causal(config):
        found.append(f"is_causal {config.is_causal} is not supported")
    groups = config.num_key_value_heads
    if groups < 1 or config.num_attention_heads % groups:
        found.append(f"num_key_value_heads {groups} do not divide num_attention_heads")
    for kind in sorted(set(layer_types) - {"full_attention", "sliding_attention"}):
        found.append(f"layer_types with '{kind}' is not supported")
    if "sliding_attention" in layer_types and config.sliding_window is None:
        found.append("layer_types has sliding_attention, but sliding_window is not set")
    if any(window is not None and window < 1 for window in windows):
        found.append(f"sliding_window {config.sliding_window} is not a number of tokens")
    return found


def _layer(family: str, module: HfModule, window: int | None) -> LocatedLayer:
    return LocatedLayer(
        module=module,
        attention=attention_of(module.self_attn, normed=family == "qwen3"),
        mlp=mlp_of(module.mlp),
        attention_norm=module.input_layernorm,
        mlp_norm=module.post_attention_layernorm,
        window=window,
    )


def locate(model: HfModule) -> LocatedModel:
    """Takes a `*ForCausalLM` of these families apart."""
    config, body = model.config, model.model
    family = config.model_type
    windows = _WINDOWS[family](config)
    layer_types = config.layer_types if _WINDOWS[family] is windows_by_layer else []
    return LocatedModel(
        family=family,
        model=model,
        shape=shape_of(config),
        layers=[
            _layer(family, layer, window)
            for layer, window in zip(body.layers, windows, strict=True)
        ],
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head,
        rotary=body.rotary_emb,
        names=replace(NAMES, biases=("attention_bias", "mlp_bias")) if family == "llama" else NAMES,
        causal=is_causal(config),
        serving=ServingConfig(
            activation=config.hidden_act,
            activation_field="hidden_act",
            norm_eps=config.rms_norm_eps,
            embed_scale=1.0,
            rope_types=frozenset({body.rotary_emb.rope_type}),
            refusals=tuple(refusals_of(config, windows, layer_types)),
        ),
    )
