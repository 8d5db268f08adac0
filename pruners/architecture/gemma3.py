"""Gemma 3 (text): Llama's names, with norms on both sides of each block."""

from dataclasses import replace

from pruners.architecture.base import HfModule, LocatedLayer, LocatedModel, ServingConfig
from pruners.architecture.llama import (
    NAMES,
    attention_of,
    is_causal,
    mlp_of,
    refusals_of,
    shape_of,
    windows_by_layer,
)

FAMILIES = ("gemma3_text",)


def _layer(module: HfModule, window: int | None, kind: str) -> LocatedLayer:
    return LocatedLayer(
        module=module,
        attention=attention_of(module.self_attn, normed=True),
        mlp=mlp_of(module.mlp),
        attention_norm=module.input_layernorm,
        mlp_norm=module.pre_feedforward_layernorm,
        attention_out_norm=module.post_attention_layernorm,
        mlp_out_norm=module.post_feedforward_layernorm,
        window=window,
        rope=kind,
    )


def _refusals(config: HfModule) -> list[str]:
    found = refusals_of(config, windows_by_layer(config), config.layer_types)
    if config.use_bidirectional_attention:
        found.append("use_bidirectional_attention is not supported")
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, cap) is not None:
            found.append(f"{cap} is not supported")
    return found


def locate(model: HfModule) -> LocatedModel:
    """Takes a `Gemma3ForCausalLM` apart."""
    config, body = model.config, model.model
    kinds = config.layer_types
    return LocatedModel(
        family=config.model_type,
        model=model,
        shape=shape_of(config),
        layers=[
            _layer(*parts)
            for parts in zip(body.layers, windows_by_layer(config), kinds, strict=True)
        ],
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head,
        rotary=body.rotary_emb,
        names=replace(NAMES, norm_shift=1.0),
        causal=is_causal(config) and not config.use_bidirectional_attention,
        serving=ServingConfig(
            activation=config.hidden_activation,
            activation_field="hidden_activation",
            norm_eps=config.rms_norm_eps,
            embed_scale=config.hidden_size**0.5,
            rope_types=frozenset(body.rotary_emb.rope_type[kind] for kind in kinds),
            refusals=tuple(_refusals(config)),
        ),
    )
