"""OLMo 2: norms behind each block, none before it; queries and keys are normed over all heads."""

from dataclasses import replace

from pruners.architecture.base import HfModule, LocatedLayer, LocatedModel
from pruners.architecture.llama import NAMES, attention_of, mlp_of, model_of

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
    names = replace(NAMES, norm_rounds_last=True)
    located = model_of(model, [_layer(layer) for layer in model.model.layers], [], names)
    assert located.serving is not None
    return replace(
        located,
        shape=replace(located.shape, cuts_groups=False),
        serving=replace(located.serving, rotates_in_fp32=True),
    )
