"""The `slice` realization: a variant as a smaller, ordinary `transformers` model of its own."""

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
    Shape,
    UnsupportedModelError,
    stored_module,
)
from pruners.realization.order import Order, feature_indices
from pruners.realization.slice_config import update_config
from pruners.support.errors import UserError
from pruners.variant import VariantSpec

CopyMemo = dict[int, Any]
"""What stands in the smaller model for an object of the base, by the object's id."""


class SliceError(UserError):
    """The cut leaves no model, or a slice's folder is missing, damaged or mixed up. One line."""


def slice_model(located: LocatedModel, spec: VariantSpec, order: Order) -> PreTrainedModel:
    """Copies what `spec` keeps into a smaller model of the same class; the base is left alone.

    `nn.Linear` and `Conv1D` are rebuilt with the units that `order` puts first, in the base's own
    sequence. A layer with both widths 0 is gone and those behind it move up; a single block of
    width 0 is replaced by one without weights. The configuration says what it can, see `describe`.
    Raises `ValueError` if the spec does not fit, `SliceError` if it leaves no layer, and
    `UnsupportedModelError` for quantised weights or a layer that cannot move.
    """
    return slice_into({}, located, spec, order)


def slice_into(
    copies: CopyMemo, located: LocatedModel, spec: VariantSpec, order: Order
) -> PreTrainedModel:
    """`slice_model` that uses what is in `copies` instead of making a copy, and adds all it makes.

    With the base's own tensors in it, whatever is not cut is shared with the base.
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
            copies[id(layer.module)] = _Gone()
            continue
        groups = order.kv[index][: spec.kv_groups[index]].sort().values
        neurons = order.ffn[index][: spec.ffn[index]].sort().values
        if len(groups) < located.shape.kv_groups:
            _cut_attention(copies, layer.attention, groups, located.shape)
        if len(neurons) < located.shape.ffn:
            _cut_mlp(copies, layer.mlp, neurons, located.shape)
    # deepcopy takes what it finds among the copies and makes only the rest.
    smaller = copy.deepcopy(located.model, copies)
    for index in kept:
        attention = located.layers[index].attention
        _count_heads(copies[id(attention.module)], attention, spec.kv_groups[index], located.shape)
    _close_gaps(smaller)
    update_config(smaller.config, located, spec, kept)
    return smaller


class NoNeurons(nn.Module):
    """In the place of a projection to FFN neurons of which none is left."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[..., :0]


class NoOutput(nn.Module):
    """In the place of a projection back to the residual stream: adds nothing to it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.new_zeros(*inputs.shape[:-1], self.hidden)


class NoAttention(nn.Module):
    """In the place of an attention module: adds nothing, but counts tokens in the cache.

    Generation asks the first layer's cache how far it has come; one number a token answers.
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
        if past_key_values is not None:
            nothing = hidden_states[:, None, :, :1]  # [rows, heads, tokens, features]
            past_key_values.update(nothing, nothing, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class _Gone(nn.Module):
    """Marks the place of a layer that is to be taken out."""


def _cut_attention(
    copies: CopyMemo, attention: Attention, groups: torch.Tensor, shape: Shape
) -> None:
    if len(groups) == 0:
        module: Any = attention.module
        copies[id(module)] = NoAttention(module.layer_idx)
        copies[id(stored_module(attention.o))] = NoOutput(shape.hidden)
        return
    queries = feature_indices(groups, shape.queries_per_group * shape.head_dim)
    keys = feature_indices(groups, shape.head_dim)
    _cut_outputs(copies, [(attention.q, queries), (attention.k, keys), (attention.v, keys)])
    _cut_inputs(copies, attention.o, queries)


def _cut_mlp(copies: CopyMemo, mlp: Mlp, neurons: torch.Tensor, shape: Shape) -> None:
    if len(neurons) == 0:
        copies.update({id(stored_module(projection)): NoNeurons() for projection in mlp.inputs})
        copies[id(stored_module(mlp.down))] = NoOutput(shape.hidden)
        return
    _cut_outputs(copies, [(projection, neurons) for projection in mlp.inputs])
    _cut_inputs(copies, mlp.down, neurons)


def _cut_outputs(copies: CopyMemo, parts: Sequence[tuple[nn.Linear, torch.Tensor]]) -> None:
    """Keeps these outputs of each projection; those packed in one module are packed again."""
    for source in {stored_module(projection) for projection, _ in parts}:
        mine = [(p, kept.to(p.weight.device)) for p, kept in parts if stored_module(p) is source]
        weight = torch.cat([p.weight[kept] for p, kept in mine])
        biases = [p.bias[kept] for p, kept in mine if p.bias is not None]
        copies[id(source)] = _rebuilt(source, weight, torch.cat(biases) if biases else None)


def _cut_inputs(copies: CopyMemo, projection: nn.Linear, kept: torch.Tensor) -> None:
    source = stored_module(projection)
    weight = projection.weight[:, kept.to(projection.weight.device)]
    bias = None if projection.bias is None else projection.bias.clone()
    copies[id(source)] = _rebuilt(source, weight, bias)


def _rebuilt(source: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """A module of the source's kind for `weight` `[out, in]` and `bias` `[out]`."""
    outputs, inputs = weight.shape
    # The constructors' own tensors are replaced, so they need no memory.
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


def _count_heads(module: nn.Module, attention: Attention, groups: int, shape: Shape) -> None:
    heads = groups * shape.queries_per_group
    if groups and attention.heads_attribute:
        setattr(module, attention.heads_attribute, heads)
    if groups and attention.width_attribute:
        setattr(module, attention.width_attribute, heads * shape.head_dim)


def _close_gaps(model: nn.Module) -> None:
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        gone = [index for index, layer in enumerate(layers) if isinstance(layer, _Gone)]
        for index in reversed(gone):
            del layers[index]
        if gone:
            for index, layer in enumerate(layers):
                for part in layer.modules():
                    if "layer_idx" in vars(part):
                        vars(part)["layer_idx"] = index
