"""Merge a variant's corrections into a smaller, ordinary `transformers` model."""

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
    """Return the slice of `slice_model` with the variant's corrections in its weights.

    It computes what the variant computes when it is served. Low-rank terms are added to weights,
    norms, or the projections that read the residual stream without one, are multiplied, and the
    constant of a skipped block is added to the bias of the output projection before it. If the
    configuration has flags for biases (Llama), all projections get one, so that `from_pretrained`
    builds them too. Raises `SliceError` for families that are not served, and if there is no
    projection before a skipped block to hold its constant.
    """
    if located.family not in SERVED_FAMILIES:
        raise SliceError(f"corrections of family '{located.family}' are not merged")
    memo: CopyMemo = {}
    smaller = slice_into(memo, located, spec, order)
    previous: nn.Linear | None = None
    for index, layer in enumerate(located.layers):
        for part in PARTS:
            block = Block(index, part)
            correction = corrections.get(block)
            if spec.width(block):
                previous = memo[id(_output(layer, block))]
                if correction is not None:
                    _merge_correction(memo, located, block, _units(spec, order, block), correction)
            elif correction is not None:
                out_norm = layer.attention_out_norm or layer.mlp_out_norm
                if previous is None or out_norm is not None:
                    raise SliceError(
                        f"variant '{spec.name}': no bias can hold what the skipped {part} block of "
                        f"layer {index} adds"
                    )
                _add_bias(previous, correction.bias)
    config: Any = smaller.config
    if corrections and located.names.biases:
        for flag in located.names.biases:
            setattr(config, flag, True)
        for layer in located.layers:
            for linear in _projections(layer):
                copied = memo.get(id(linear))
                if isinstance(copied, nn.Linear):
                    _add_bias(copied, torch.zeros(copied.out_features))
    return smaller


def _units(spec: VariantSpec, order: Order, block: Block) -> torch.Tensor:
    orders = order.kv if block.part == "attention" else order.ffn
    return orders[block.layer][: spec.width(block)]


def _output(layer: LocatedLayer, block: Block) -> nn.Linear:
    return layer.attention.o if block.part == "attention" else layer.mlp.down


def _projections(layer: LocatedLayer) -> list[nn.Linear]:
    attention, mlp = layer.attention, layer.mlp
    return [attention.q, attention.k, attention.v, attention.o, *mlp.inputs, mlp.down]


def _merge_correction(
    memo: CopyMemo,
    located: LocatedModel,
    block: Block,
    units: torch.Tensor,
    correction: Correction,
) -> None:
    """Merge a correction into the copied modules of one block.

    They hold the kept units in the order of their indices; the correction holds them in the order
    of `units`.
    """
    layer, shape = located.layers[block.layer], located.shape
    by_index = units.argsort()
    size = shape.queries_per_group * shape.head_dim if block.part == "attention" else 1
    inputs = feature_indices(by_index, size)
    output = memo[id(_output(layer, block))]
    if isinstance(correction, RefitCorrection):
        output.weight.copy_(correction.weight[:, inputs])
    else:
        output.weight += (correction.up.float() @ correction.down.float())[:, inputs].to(
            output.weight
        )
        if correction.entry is not None:
            _merge_input_correction(memo, located, block, units, correction.entry)
    _add_bias(output, correction.bias)


def _merge_input_correction(
    memo: CopyMemo,
    located: LocatedModel,
    block: Block,
    units: torch.Tensor,
    entry: InputCorrection,
) -> None:
    layer = located.layers[block.layer]
    norm = layer.attention_norm if block.part == "attention" else layer.mlp_norm
    factor = entry.norm.float()
    if norm is not None:
        weight, shift = memo[id(norm)].weight, located.names.norm_shift
        weight.copy_((weight.float() + shift) * factor - shift)
    # The position of each of the variant's units in the slice.
    positions = units.argsort().argsort()
    for linear, rows, up in split_input_correction(located, block, positions, entry.up.float()):
        weight = memo[id(linear)].weight
        weight.index_add_(0, rows, (up @ entry.down.float()).to(weight))
        if norm is None:  # nothing else is left to scale the inputs
            weight.copy_(weight.float() * factor)


def _add_bias(linear: nn.Linear, bias: torch.Tensor) -> None:
    if linear.bias is None:
        zeros = torch.zeros(linear.out_features, dtype=linear.weight.dtype)
        linear.bias = nn.Parameter(zeros, linear.weight.requires_grad)
    linear.bias.add_(bias.to(linear.bias))
