"""Adapters, one small file a family: where heads, feed-forward, layers and norms live."""

from torch import nn

from pruners.architecture import gemma3, llama
from pruners.architecture.base import (
    Attention,
    Decoder,
    Layer,
    Mlp,
    Shape,
    UnsupportedModelError,
)

_LOCATE = {family: adapter.locate for adapter in (llama, gemma3) for family in adapter.FAMILIES}

SERVED_FAMILIES = tuple(_LOCATE)


def locate(model: nn.Module) -> Decoder:
    """Takes a `transformers` causal language model apart.

    Raises `UnsupportedModelError`, naming the family and what is supported.
    """
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if family not in _LOCATE:
        known = ", ".join(SERVED_FAMILIES)
        raise UnsupportedModelError(f"model family '{family}' is not supported; supported: {known}")
    return _LOCATE[family](model)


__all__ = [
    "SERVED_FAMILIES",
    "Attention",
    "Decoder",
    "Layer",
    "Mlp",
    "Shape",
    "UnsupportedModelError",
    "locate",
]
