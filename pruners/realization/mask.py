"""The `mask` realization: hooks make a model compute what a variant computes.

It is for measuring quality: the model gets neither smaller nor faster.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruners.architecture import LocatedModel, stored_module
from pruners.correction import Correction, LowRankCorrection
from pruners.realization.order import Order, feature_indices
from pruners.variant import Block, VariantSpec


@contextmanager
def apply_mask(
    located: LocatedModel,
    spec: VariantSpec,
    order: Order,
    corrections: Mapping[Block, Correction] | None = None,
) -> Iterator[None]:
    """Make the model compute what the variant `spec` computes, while the context is open.

    In each layer, the units that `order` puts after the first `width` are set to zero: neurons at
    the input of `down`, KV groups at the input of `o`. A block of width 0 outputs exactly zero, and
    a layer with two such blocks returns its input. `corrections` are applied to their blocks.
    Blocks of full width without a correction have no hook, so the base stays bit-identical. Weights
    do not change, and all hooks are removed on exit. Raises `ValueError` if the spec does not fit.
    """
    spec.check(located.shape)
    corrections = corrections or {}
    queries = located.shape.queries_per_group * located.shape.head_dim
    with ExitStack() as hooks:
        for index, layer in enumerate(located.layers):
            attention, mlp = Block(index, "attention"), Block(index, "mlp")
            if spec.width(attention) == spec.width(mlp) == 0:
                # The whole layer, since norms after the residual sums would still change its input.
                biases = [corrections[b].bias for b in (attention, mlp) if b in corrections]
                added = [layer.residual_scale * bias for bias in biases]
                hooks.callback(layer.module.register_forward_hook(_pass_input(added)).remove)
                continue
            for block, linear, output, units, size in (
                (attention, layer.attention.o, layer.attention_output, order.kv[index], queries),
                (mlp, layer.mlp.down, layer.mlp_output, order.ffn[index], 1),
            ):
                width = spec.width(block)
                correction = corrections.get(block)
                if width == 0:
                    bias = None if correction is None else correction.bias
                    hooks.callback(output.register_forward_hook(constant_output_hook(bias)).remove)
                    continue
                kept = feature_indices(units[:width], size)
                if correction is not None:
                    hooks.callback(_correct_output(linear, kept, correction).remove)
                    for handle in _correct_inputs(located, block, units[:width], correction):
                        hooks.callback(handle.remove)
                if width < len(units):
                    dropped = feature_indices(units[width:], size)
                    hooks.callback(_zero_inputs(linear, dropped).remove)
        yield


def _pass_input(added: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a forward hook that replaces a layer's output by its input plus what is `added`."""

    def pass_input(
        module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        hidden = args[0]
        for constant in added:
            hidden = hidden + constant.to(hidden)
        return hidden

    return pass_input


def constant_output_hook(bias: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    """Return a forward hook that replaces a module's output by `bias` `[hidden]`, or by zeros.

    It replaces the output, so that the module's own bias has no effect either.
    """

    def constant(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        zeros = torch.zeros_like(output)
        return zeros if bias is None else zeros + bias.to(output)

    return constant


def _zero_inputs(linear: nn.Linear, dropped: torch.Tensor) -> RemovableHandle:
    return linear.register_forward_pre_hook(
        lambda module, args: (args[0].index_fill(-1, dropped.to(args[0].device), 0.0),)
    )


def _correct_inputs(
    located: LocatedModel, block: Block, units: torch.Tensor, correction: Correction
) -> list[RemovableHandle]:
    """Register hooks for the correction of the block's input projections, if it has one."""
    entry = correction.entry if isinstance(correction, LowRankCorrection) else None
    if entry is None:
        return []
    layer = located.layers[block.layer]
    norm, inputs = layer.attention_norm, layer.attention.inputs
    if block.part == "mlp":
        norm, inputs = layer.mlp_norm, layer.mlp.inputs
    return [
        *hook_block_input(norm, inputs, lambda normed: normed * entry.norm.to(normed)),
        *(
            _add_low_rank(linear, kept, up, entry.down)
            for linear, kept, up in split_input_correction(located, block, units, entry.up)
        ),
    ]


def hook_block_input(
    norm: nn.Module | None,
    inputs: Sequence[nn.Module],
    change: Callable[[torch.Tensor], torch.Tensor],
) -> list[RemovableHandle]:
    """Register hooks that change what a block's input projections read, `[..., hidden]`.

    It is the output of `norm`, or the residual stream itself in families without one there.
    """
    if norm is not None:
        return [norm.register_forward_hook(lambda module, args, output: change(output))]
    return [
        source.register_forward_pre_hook(lambda module, args: (change(args[0]),))
        for source in dict.fromkeys(stored_module(one) for one in inputs)
    ]


def split_input_correction(
    located: LocatedModel, block: Block, units: torch.Tensor, up: torch.Tensor
) -> list[tuple[nn.Linear, torch.Tensor, torch.Tensor]]:
    """Split the `up` `[features, rank]` of an `InputCorrection` by input projection.

    Returns each projection, the indices of the features of `units` in its output, and the rows of
    `up` for them, `[len(indices), rank]`.
    """
    shape, layer = located.shape, located.layers[block.layer]
    if block.part == "mlp":
        inputs = layer.mlp.inputs
        return [
            (linear, units, rows)
            for linear, rows in zip(inputs, up.chunk(len(inputs)), strict=True)
        ]
    dim, queries = shape.head_dim, shape.queries_per_group
    heads = up.unflatten(0, (len(units), queries + 2, dim))
    attention, keys = layer.attention, feature_indices(units, dim)
    return [
        (attention.q, feature_indices(units, queries * dim), heads[:, :queries].flatten(0, 2)),
        (attention.k, keys, heads[:, queries].flatten(0, 1)),
        (attention.v, keys, heads[:, queries + 1].flatten(0, 1)),
    ]


def _add_low_rank(
    linear: nn.Linear, kept: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> RemovableHandle:
    def add(
        module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        added = args[0] @ down.to(output).T @ up.to(output).T
        return output.index_add(-1, kept.to(output.device), added)

    return linear.register_forward_hook(add)


def _correct_output(
    linear: nn.Linear, kept: torch.Tensor, correction: Correction
) -> RemovableHandle:
    def correct(
        module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        return correction.correct(linear, args[0][..., kept.to(args[0].device)], output)

    return linear.register_forward_hook(correct)
