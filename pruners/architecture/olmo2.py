"""OLMo 2: norms behind each block, none before it; queries and keys are normed over all heads."""

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

FAMILIES = ("olmo2",)


def _layer(module: HfModule) -> LocatedLayer:
    return LocatedLayer(
        module=module,
        attention=replace(attention_of(module.self_attn, normed=True), norms_all_heads=True),
        mlp=mlp_of(module.mlp),
        attention_norm=None,
        mlp_norm=None,
        attention_out_norm=module.post_attention_layernorm,
        mlp_out_norm=module.post_feedforward_layernorm,
    )


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of an `Olmo2ForCausalLM`."""
    config, body = model.config, model.model
    return LocatedModel(
        family=config.model_type,
        model=model,
        shape=replace(shape_of(config), cuts_groups=False),
        layers=[_layer(layer) for layer in body.layers],
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head,
        rotary=body.rotary_emb,
        names=replace(NAMES, norm_rounds_last=True),
        causal=is_causal(config),
        serving=ServingConfig(
            activation=config.hidden_act,
            activation_field="hidden_act",
            norm_eps=config.rms_norm_eps,
            rope_types=frozenset({body.rotary_emb.rope_type}),
            rotates_in_fp32=True,
            refusals=tuple(list_refusals(config, no_windows(config), [])),
        ),
    )
