"""Gemma 3 (text): module names as in Llama, with norms before and after each block."""

from dataclasses import replace

from pruners.architecture.base import HfModule, LocatedLayer, LocatedModel, ServingConfig
from pruners.architecture.llama import (
    NAMES,
    attention_of,
    is_causal,
    list_refusals,
    mlp_of,
    shape_of,
    windows_by_layer,
)

FAMILIES = ("gemma3_text",)


def _layer(module: HfModule, window: int | None, layer_type: str) -> LocatedLayer:
    return LocatedLayer(
        module=module,
        attention=attention_of(module.self_attn, normed=True),
        mlp=mlp_of(module.mlp),
        attention_norm=module.input_layernorm,
        mlp_norm=module.pre_feedforward_layernorm,
        attention_out_norm=module.post_attention_layernorm,
        mlp_out_norm=module.post_feedforward_layernorm,
        window=window,
        rope_layer_type=layer_type,
    )


def _refusals(config: HfModule) -> list[str]:
    refusals = list_refusals(config, windows_by_layer(config), config.layer_types)
    if config.use_bidirectional_attention:
        refusals.append("use_bidirectional_attention is not supported")
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, cap) is not None:
            refusals.append(f"{cap} is not supported")
    return refusals


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of a `Gemma3ForCausalLM`."""
    config, body = model.config, model.model
    layer_types = config.layer_types
    return LocatedModel(
        family=config.model_type,
        model=model,
        shape=shape_of(config),
        layers=[
            _layer(*parts)
            for parts in zip(body.layers, windows_by_layer(config), layer_types, strict=True)
        ],
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head,
        rotary=body.rotary_emb,
        names=replace(NAMES, norm_shift=1.0, norm_rounds_last=True),
        causal=is_causal(config) and not config.use_bidirectional_attention,
        serving=ServingConfig(
            activation=config.hidden_activation,
            activation_field="hidden_activation",
            norm_eps=config.rms_norm_eps,
            embed_scale=config.hidden_size**0.5,
            rounds_embed_scale=True,
            rope_types=frozenset(body.rotary_emb.rope_type[name] for name in layer_types),
            refusals=tuple(_refusals(config)),
        ),
    )
