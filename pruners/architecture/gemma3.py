"""Gemma 3 (text): Llama's names, with norms on both sides of each block."""

from dataclasses import replace

from pruners.architecture.base import Decoder, HfModule, Layer
from pruners.architecture.llama import NAMES, attention_of, mlp_of, shape_of, window_of

FAMILIES = ("gemma3_text",)


def _layer(config: HfModule, index: int, module: HfModule) -> Layer:
    return Layer(
        module=module,
        attention=attention_of(module.self_attn),
        mlp=mlp_of(module.mlp),
        attention_norm=module.input_layernorm,
        mlp_norm=module.pre_feedforward_layernorm,
        attention_out_norm=module.post_attention_layernorm,
        mlp_out_norm=module.post_feedforward_layernorm,
        window=window_of(config, index),
        rope=config.layer_types[index],
    )


def locate(model: HfModule) -> Decoder:
    """Takes a `Gemma3ForCausalLM` apart."""
    body = model.model
    return Decoder(
        family=model.config.model_type,
        model=model,
        shape=shape_of(model.config),
        layers=[_layer(model.config, index, layer) for index, layer in enumerate(body.layers)],
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head,
        rotary=body.rotary_emb,
        names=replace(NAMES, norm_shift=1.0),
    )
