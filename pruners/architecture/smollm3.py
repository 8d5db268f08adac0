"""SmolLM3: module names as in Llama; some layers have no rotary embedding."""

from dataclasses import replace

from pruners.architecture.base import (
    NO_ROPE,
    HfModule,
    LocatedLayer,
    LocatedModel,
    ServingConfig,
)
from pruners.architecture.llama import (
    NAMES,
    attention_of,
    is_causal,
    list_refusals,
    mlp_of,
    shape_of,
    windows_by_layer,
)

FAMILIES = ("smollm3",)


def _layer(module: HfModule, window: int | None) -> LocatedLayer:
    return LocatedLayer(
        module=module,
        attention=attention_of(module.self_attn, normed=False),
        mlp=mlp_of(module.mlp),
        attention_norm=module.input_layernorm,
        mlp_norm=module.post_attention_layernorm,
        window=window,
        rope_layer_type=None if module.self_attn.use_rope else NO_ROPE,
    )


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of a `SmolLM3ForCausalLM`."""
    config, body = model.config, model.model
    windows = windows_by_layer(config)
    return LocatedModel(
        family=config.model_type,
        model=model,
        shape=shape_of(config),
        layers=[_layer(layer, window) for layer, window in zip(body.layers, windows, strict=True)],
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head,
        rotary=body.rotary_emb,
        names=replace(
            NAMES,
            biases=("attention_bias", "mlp_bias"),
            by_layer=(*NAMES.by_layer, "no_rope_layers"),
        ),
        causal=is_causal(config),
        serving=ServingConfig(
            activation=config.hidden_act,
            activation_field="hidden_act",
            norm_eps=config.rms_norm_eps,
            rope_types=frozenset({body.rotary_emb.rope_type}),
            refusals=tuple(list_refusals(config, windows, config.layer_types)),
        ),
    )
