"""The `slice` realization: a variant as a smaller `transformers` model of its own."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pruners.architecture import (
    Attention,
    LocatedModel,
    Mlp,
    OutputView,
    Shape,
    UnsupportedModelError,
    stored_module,
)
from pruners.realization.order import Order, feature_indices
from pruners.realization.slice_config import update_config
from pruners.support.errors import UserError
from pruners.variant import VariantSpec

CopyMemo = dict[int, Any]
"""The memo of `copy.deepcopy`: for the id of an object of the base, its copy in the slice."""


class SliceError(UserError):
    """A variant leaves no model, or a slice's folder is missing or damaged. One line."""


def slice_model(located: LocatedModel, spec: VariantSpec, order: Order) -> PreTrainedModel:
    """Copy what `spec` keeps into a smaller model of the same class; the base does not change.

    `nn.Linear` and `Conv1D` modules are rebuilt with the units that `order` puts first, in the
    order of their indices. A layer with both widths 0 is removed, and later layers move up; a
    single block of width 0 is replaced by modules without weights. The configuration is adapted by
    `update_config`. Raises `ValueError` if the spec does not fit, `SliceError` if no layer is left,
    and `UnsupportedModelError` for quantized weights or a layer that cannot move up.
    """
    return slice_into({}, located, spec, order)


def slice_into(
    memo: CopyMemo, located: LocatedModel, spec: VariantSpec, order: Order
) -> PreTrainedModel:
    """Do what `slice_model` does with a given `memo`, and add all copies to it.

    An object whose id is in `memo` is not copied; with the base's own tensors in it, the slice
    shares all weights that are not cut. Views of packed projections get views of their copies.
    """
    spec.check(located.shape)
    kept = [
        index for index in range(located.shape.layers) if spec.kv_groups[index] + spec.ffn[index]
    ]
    if not kept:
        raise SliceError(f"variant '{spec.name}' leaves no layer to make a model of")
    if located.names.bound_to_layer_index and len(kept) < located.shape.layers:
        raise UnsupportedModelError("attention scaled by a layer's number: layers cannot move up")

    for index, layer in enumerate(located.layers):
        if index not in kept:
            memo[id(layer.module)] = _RemovedLayer()
            continue
        groups = order.kv[index][: spec.kv_groups[index]].sort().values
        neurons = order.ffn[index][: spec.ffn[index]].sort().values
        if len(groups) < located.shape.kv_groups:
            _cut_attention(memo, layer.attention, groups, located.shape)
        if len(neurons) < located.shape.ffn:
            _cut_mlp(memo, layer.mlp, neurons, located.shape)
    # deepcopy uses the copies in the memo and makes the others.
    smaller = copy.deepcopy(located.model, memo)
    for index in kept:
        _set_heads(memo, located.layers[index].attention, spec.kv_groups[index], located.shape)
        _add_views(memo, located, spec, index)
    _remove_layers(smaller)
    update_config(smaller.config, located, spec, kept)
    return smaller


class NoNeurons(nn.Module):
    """Replaces a projection to neurons when none is left; the output has no features."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map `[..., hidden]` to `[..., 0]`."""
        return hidden[..., :0]


class NoOutput(nn.Module):
    """Replaces a projection to the residual stream; the output is zero."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., features]` to zeros `[..., hidden]`."""
        return inputs.new_zeros(*inputs.shape[:-1], self.hidden)


class NoAttention(nn.Module):
    """Replaces an attention module; the output is zero, but the cache still counts tokens.

    Generation reads the number of cached tokens from the first layer's cache, so one number a token
    is stored there.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: object,
        past_key_values: Any = None,  # noqa: ANN401
        **call: object,
    ) -> tuple[torch.Tensor, None]:
        """Return zeros `[rows, tokens, hidden]` and no attention weights."""
        if past_key_values is not None:
            placeholder = hidden_states[:, None, :, :1]  # [rows, heads, tokens, features]
            past_key_values.update(placeholder, placeholder, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class _RemovedLayer(nn.Module):
    """Marks a layer that is to be removed."""


def _cut_attention(
    memo: CopyMemo, attention: Attention, groups: torch.Tensor, shape: Shape
) -> None:
    if len(groups) == 0:
        module: Any = attention.module
        memo[id(module)] = NoAttention(module.layer_idx)
        memo[id(stored_module(attention.o))] = NoOutput(shape.hidden)
        return
    queries = feature_indices(groups, shape.queries_per_group * shape.head_dim)
    keys = feature_indices(groups, shape.head_dim)
    _cut_outputs(memo, [(attention.q, queries), (attention.k, keys), (attention.v, keys)])
    _cut_inputs(memo, attention.o, queries)


def _cut_mlp(memo: CopyMemo, mlp: Mlp, neurons: torch.Tensor, shape: Shape) -> None:
    if len(neurons) == 0:
        memo.update({id(stored_module(projection)): NoNeurons() for projection in mlp.inputs})
        memo[id(stored_module(mlp.down))] = NoOutput(shape.hidden)
        return
    _cut_outputs(memo, [(projection, neurons) for projection in mlp.inputs])
    _cut_inputs(memo, mlp.down, neurons)


def _cut_outputs(memo: CopyMemo, parts: Sequence[tuple[nn.Linear, torch.Tensor]]) -> None:
    """Keep these outputs of each projection; projections packed in one module stay packed."""
    for source in {stored_module(projection) for projection, _ in parts}:
        packed = [(p, kept.to(p.weight.device)) for p, kept in parts if stored_module(p) is source]
        weight = torch.cat([p.weight[kept] for p, kept in packed])
        biases = [p.bias[kept] for p, kept in packed if p.bias is not None]
        memo[id(source)] = _rebuild(source, weight, torch.cat(biases) if biases else None)


def _cut_inputs(memo: CopyMemo, projection: nn.Linear, kept: torch.Tensor) -> None:
    source = stored_module(projection)
    weight = projection.weight[:, kept.to(projection.weight.device)]
    bias = None if projection.bias is None else projection.bias.clone()
    memo[id(source)] = _rebuild(source, weight, bias)


def _rebuild(source: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """Return a module of the source's class with `weight` `[out, in]` and `bias` `[out]`."""
    outputs, inputs = weight.shape
    # The tensors that the constructor makes are replaced, so they need no memory.
    with torch.device("meta"):
        if type(source) is nn.Linear:
            module: nn.Module = nn.Linear(inputs, outputs, bias is not None)
        elif type(source) is Conv1D:
            module, weight = Conv1D(outputs, inputs), weight.T
        else:
            raise UnsupportedModelError(f"cannot slice weights of kind {type(source).__name__}")
    trained = next(source.parameters()).requires_grad
    module.weight = nn.Parameter(weight.detach().contiguous(), trained)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach(), trained)
    return module.train(source.training)


def _set_heads(memo: CopyMemo, attention: Attention, groups: int, shape: Shape) -> None:
    if 0 < groups < shape.kv_groups and attention.set_heads is not None:
        attention.set_heads(memo[id(attention.module)], groups * shape.queries_per_group)


def _add_views(memo: CopyMemo, located: LocatedModel, spec: VariantSpec, index: int) -> None:
    """Add views of a layer's copied modules for those input projections that are views."""
    layer, groups, dim = located.layers[index], spec.kv_groups[index], located.shape.head_dim
    attention, keys = layer.attention, groups * dim
    queries = keys * located.shape.queries_per_group
    for parts, sizes in (
        (attention.inputs, [queries, keys, keys]),
        (layer.mlp.inputs, [spec.ffn[index]] * len(layer.mlp.inputs)),
    ):
        start = 0
        for projection, size in zip(parts, sizes, strict=True):
            if size and isinstance(projection, OutputView):
                copied = memo[id(projection.source)]
                memo[id(projection)] = projection.moved_to(copied, start, size)
            start += size


def _remove_layers(model: nn.Module) -> None:
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        removed = [index for index, layer in enumerate(layers) if isinstance(layer, _RemovedLayer)]
        for index in reversed(removed):
            del layers[index]
        if removed:
            for index, layer in enumerate(layers):
                for part in layer.modules():
                    if "layer_idx" in vars(part):
                        vars(part)["layer_idx"] = index
