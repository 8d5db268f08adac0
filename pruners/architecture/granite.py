"""Granite: module names as in Llama; embeddings, blocks and logits are scaled."""

from dataclasses import replace

from pruners.architecture.base import HfModule, LocatedModel
from pruners.architecture.llama import BIASED_NAMES, layer_of, model_of
from pruners.architecture.weight_view import ScaledHead

FAMILIES = ("granite",)


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of a `GraniteForCausalLM`."""
    config = model.config
    residual_scale, logits_scale = float(config.residual_multiplier), float(config.logits_scaling)
    layers = [replace(layer_of(one), residual_scale=residual_scale) for one in model.model.layers]
    located = model_of(model, layers, [], BIASED_NAMES)
    assert located.serving is not None
    return replace(
        located,
        head=located.head if logits_scale == 1.0 else ScaledHead(located.head, logits_scale),
        serving=replace(
            located.serving,
            embed_scale=float(config.embedding_multiplier),
            logits_scale=logits_scale,
        ),
    )
