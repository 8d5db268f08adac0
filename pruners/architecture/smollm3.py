"""SmolLM3: module names as in Llama; some layers have no rotary embedding."""

from dataclasses import replace

from pruners.architecture.base import NO_ROPE, HfModule, LocatedModel
from pruners.architecture.llama import BIASED_NAMES, layer_of, model_of, windows_by_layer

FAMILIES = ("smollm3",)
_NAMES = replace(BIASED_NAMES, by_layer=(*BIASED_NAMES.by_layer, "no_rope_layers"))


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of a `SmolLM3ForCausalLM`."""
    config = model.config
    layers = [
        replace(
            layer_of(layer),
            window=window,
            rope_layer_type=None if layer.self_attn.use_rope else NO_ROPE,
        )
        for layer, window in zip(model.model.layers, windows_by_layer(config), strict=True)
    ]
    return model_of(model, layers, config.layer_types, _NAMES)
