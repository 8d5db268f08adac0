"""Adapters, one module a model family: where attention, feed-forward blocks and norms are."""

from torch import nn

from pruners.architecture import bert, gemma3, gpt2, llama, opt
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
from pruners.architecture.weight_view import stored_module

SERVED_FAMILIES = (*llama.FAMILIES, *gemma3.FAMILIES)

_LOCATE = {
    family: adapter.locate
    for adapter in (llama, gemma3, gpt2, opt, bert)
    for family in adapter.FAMILIES
}


def locate(model: nn.Module) -> LocatedModel:
    """Locate the parts of a `transformers` language model with its head.

    Raises `UnsupportedModelError` with the supported families or the modules that the model has.
    """
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if family not in _LOCATE:
        raise UnsupportedModelError(
            f"model family '{family}' is not supported; supported: {', '.join(_LOCATE)}; "
            f"found modules: {_describe_modules(model)}"
        )
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
    "LocatedLayer",
    "LocatedModel",
    "Mlp",
    "ServingConfig",
    "Shape",
    "UnsupportedModelError",
    "locate",
    "stored_module",
]
