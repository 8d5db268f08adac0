"""A variant with its corrections merged into a smaller, ordinary `transformers` model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruners.architecture import SERVED_FAMILIES, LocatedLayer, LocatedModel
from pruners.correction import Correction, InputCorrection, RefitCorrection
from pruners.realization.mask import split_input_correction
from pruners.realization.order import Order, feature_indices
from pruners.realization.slice import CopyMemo, SliceError, slice_into
from pruners.variant import PARTS, Block, VariantSpec


@torch.no_grad()
def slice_with_corrections(
    located: LocatedModel,
    spec: VariantSpec,
    order: Order,
    corrections: Mapping[Block, Correction],
) -> PreTrainedModel:
    """`slice_model` that answers as the variant does when it is served.

    Low ranks are added to the weights, norms multiplied, and the constants of skipped blocks go
    into the bias in front of them. Where the configuration can say so (Llama), all projections get
    a bias, so that `from_pretrained` builds them too. Raises `SliceError` for a family that is not
    served and where no bias stands in front of a constant.
    """
    if located.family not in SERVED_FAMILIES:
        raise SliceError(f"corrections of family '{located.family}' are not merged")
    copies: CopyMemo = {}
    smaller = slice_into(copies, located, spec, order)
    before: nn.Linear | None = None
    for index, layer in enumerate(located.layers):
        for part in PARTS:
            block = Block(index, part)
            correction = corrections.get(block)
            if spec.width(block):
                before = copies[id(_output(layer, block))]
                if correction is not None:
                    _merge(copies, located, block, _units(spec, order, block), correction)
            elif correction is not None:
                out_norm = layer.attention_out_norm or layer.mlp_out_norm
                if before is None or out_norm is not None:
                    raise SliceError(
                        f"variant '{spec.name}': no bias can hold what the skipped {part} block of "
                        f"layer {index} adds"
                    )
                _add_bias(before, correction.bias)
    config: Any = smaller.config
    if corrections and located.names.biases:
        for flag in located.names.biases:
            setattr(config, flag, True)
        for layer in located.layers:
            for linear in _projections(layer):
                twin = copies.get(id(linear))
                if isinstance(twin, nn.Linear):
                    _add_bias(twin, torch.zeros(twin.out_features))
    return smaller


def _units(spec: VariantSpec, order: Order, block: Block) -> torch.Tensor:
    orders = order.kv if block.part == "attention" else order.ffn
    return orders[block.layer][: spec.width(block)]


def _output(layer: LocatedLayer, block: Block) -> nn.Linear:
    return layer.attention.o if block.part == "attention" else layer.mlp.down


def _projections(layer: LocatedLayer) -> list[nn.Linear]:
    attention, mlp = layer.attention, layer.mlp
    return [attention.q, attention.k, attention.v, attention.o, *mlp.inputs, mlp.down]


def _merge(
    copies: CopyMemo,
    located: LocatedModel,
    block: Block,
    units: torch.Tensor,
    correction: Correction,
) -> None:
    """Into the modules of one block, which hold the units in the base's sequence."""
    layer, shape = located.layers[block.layer], located.shape
    place = units.argsort()
    size = shape.queries_per_group * shape.head_dim if block.part == "attention" else 1
    inputs = feature_indices(place, size)
    output = copies[id(_output(layer, block))]
    if isinstance(correction, RefitCorrection):
        output.weight.copy_(correction.weight[:, inputs])
    else:
        output.weight += (correction.up.float() @ correction.down.float())[:, inputs].to(
            output.weight
        )
        if correction.entry is not None:
            _merge_entry(copies, located, block, units, correction.entry)
    _add_bias(output, correction.bias)


def _merge_entry(
    copies: CopyMemo,
    located: LocatedModel,
    block: Block,
    units: torch.Tensor,
    entry: InputCorrection,
) -> None:
    layer = located.layers[block.layer]
    norm = copies[id(layer.attention_norm if block.part == "attention" else layer.mlp_norm)]
    shift = located.names.norm_shift
    norm.weight.copy_((norm.weight.float() + shift) * entry.norm.float() - shift)
    # Where the variant's units stand in the slice.
    places = units.argsort().argsort()
    for linear, rows, up in split_input_correction(located, block, places, entry.up.float()):
        twin = copies[id(linear)]
        twin.weight.index_add_(0, rows, (up @ entry.down.float()).to(twin.weight))


def _add_bias(linear: nn.Linear, bias: torch.Tensor) -> None:
    if linear.bias is None:
        zeros = torch.zeros(linear.out_features, dtype=linear.weight.dtype)
        linear.bias = nn.Parameter(zeros, linear.weight.requires_grad)
    linear.bias.add_(bias.to(linear.bias))
