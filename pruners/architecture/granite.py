"""Granite: module names as in Llama; embeddings, blocks and logits are scaled."""

from dataclasses import replace

from pruners.architecture.base import HfModule, LocatedLayer, LocatedModel, ServingConfig
from pruners.architecture.llama import (
    NAMES,
    attention_of,
    is_causal,
    list_refusals,
    mlp_of,
    no_windows,
    shape_of,
)
from pruners.architecture.weight_view import ScaledHead

FAMILIES = ("granite",)


def _layer(module: HfModule, residual_scale: float) -> LocatedLayer:
    return LocatedLayer(
        module=module,
        attention=attention_of(module.self_attn, normed=False),
        mlp=mlp_of(module.mlp),
        attention_norm=module.input_layernorm,
        mlp_norm=module.post_attention_layernorm,
        residual_scale=residual_scale,
    )


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of a `GraniteForCausalLM`."""
    config, body = model.config, model.model
    scale = float(config.logits_scaling)
    return LocatedModel(
        family=config.model_type,
        model=model,
        shape=shape_of(config),
        layers=[_layer(layer, float(config.residual_multiplier)) for layer in body.layers],
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head if scale == 1.0 else ScaledHead(model.lm_head, scale),
        rotary=body.rotary_emb,
        names=replace(NAMES, biases=("attention_bias", "mlp_bias")),
        causal=is_causal(config),
        serving=ServingConfig(
            activation=config.hidden_act,
            activation_field="hidden_act",
            norm_eps=config.rms_norm_eps,
            rope_types=frozenset({body.rotary_emb.rope_type}),
            refusals=tuple(list_refusals(config, no_windows(config), [])),
            embed_scale=float(config.embedding_multiplier),
            logits_scale=scale,
        ),
    )
