"""Adapters, one module a model family: where attention, feed-forward blocks and norms are."""

from typing import Any

from torch import nn

from pruners.architecture import bert, gemma3, gpt2, granite, llama, olmo2, opt, phi3, smollm3
from pruners.architecture.base import (
    Attention,
    ConfigFields,
    LocatedLayer,
    LocatedModel,
    Mlp,
    ServingConfig,
    Shape,
    UnsupportedModelError,
)
from pruners.architecture.weight_view import LinearView, OutputView, stored_module

_SERVED = (llama, gemma3, phi3, granite, olmo2, smollm3)
SERVED_FAMILIES = tuple(family for adapter in _SERVED for family in adapter.FAMILIES)

_LOCATE = {
    family: adapter.locate for adapter in (*_SERVED, gpt2, opt, bert) for family in adapter.FAMILIES
}


def locate(model: nn.Module) -> LocatedModel:
    """Locate the parts of a `transformers` language model with its head.

    Raises `UnsupportedModelError` with the supported families or the modules that the model has.
    """
    config = getattr(model, "config", None)
    family = getattr(config, "model_type", type(model).__name__)
    if family not in _LOCATE:
        refusal = describe_refusal(family, config, tuple(_LOCATE))
        raise UnsupportedModelError(f"{refusal}; found modules: {_describe_modules(model)}")
    if getattr(getattr(model, "config", None), "is_heterogeneous", False):
        raise UnsupportedModelError("per_layer_config in config.json is not supported")
    try:
        located = _LOCATE[family](model)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"this '{family}' model is not a language model as its family lays it out ({error}); "
            f"found modules: {_describe_modules(model)}"
        ) from error
    if not located.layers:
        raise UnsupportedModelError("a model of 0 layers is not supported (num_hidden_layers)")
    return located


def describe_refusal(family: str, config: Any, supported: tuple[str, ...]) -> str:  # noqa: ANN401
    """Say why a model of another family than the `supported` ones is refused.

    `config` is its `transformers` configuration, if there is one.
    """
    fields = config.to_dict() if hasattr(config, "to_dict") else {}
    counts = [number for name, number in fields.items() if "experts" in name]
    if any(isinstance(number, int) and number > 1 for number in counts):
        return f"mixture-of-experts is not supported: {family}"
    return f"model family '{family}' is not supported; supported: {', '.join(supported)}"


def _describe_modules(model: nn.Module) -> str:
    """Name the model's children and the modules in one layer of its longest list of modules."""
    children = ", ".join(name for name, _ in model.named_children()) or "none"
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        return children
    name, longest = max(lists, key=lambda pair: len(pair[1]))
    parts = ", ".join(part for part, child in longest[0].named_modules() if _is_leaf(child))
    return f"{children}; {len(longest)} x {name}: {parts}"


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


__all__ = [
    "SERVED_FAMILIES",
    "Attention",
    "ConfigFields",
    "LinearView",
    "LocatedLayer",
    "LocatedModel",
    "Mlp",
    "OutputView",
    "ServingConfig",
    "Shape",
    "UnsupportedModelError",
    "describe_refusal",
    "locate",
    "stored_module",
]
