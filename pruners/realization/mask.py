"""The `mask` realization: a model behaves as a variant while a context is open.

For measuring quality only: nothing gets smaller or faster.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruners.architecture import LocatedModel
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
    """Zeroes what `spec` leaves out: all units of each layer behind the kept prefix of `order`.

    FFN neurons at the input of `down`, KV groups (through their query heads) at the input of `o`;
    a sub-block of width 0 adds exactly nothing, and a layer without both hands its input on. What
    `corrections` hold for a block is applied there. Full widths are left alone, so that the base
    stays bit-identical. Weights are never touched and all hooks are gone on exit. Raises
    `ValueError` if the spec does not fit the model.
    """
    spec.check(located.shape)
    own = corrections or {}
    queries = located.shape.queries_per_group * located.shape.head_dim
    with ExitStack() as hooks:
        for index, layer in enumerate(located.layers):
            attention, mlp = Block(index, "attention"), Block(index, "mlp")
            if spec.width(attention) == spec.width(mlp) == 0:
                # As a whole, since norms behind the residual sums would go on without the blocks.
                biases = [own[block].bias for block in (attention, mlp) if block in own]
                hooks.callback(layer.module.register_forward_hook(_hand_on(biases)).remove)
                continue
            for block, linear, join, units, size in (
                (attention, layer.attention.o, layer.attention_output, order.kv[index], queries),
                (mlp, layer.mlp.down, layer.mlp_output, order.ffn[index], 1),
            ):
                width = spec.width(block)
                correction = own.get(block)
                if width == 0:
                    bias = None if correction is None else correction.bias
                    hooks.callback(join.register_forward_hook(constant_output_hook(bias)).remove)
                    continue
                kept = feature_indices(units[:width], size)
                if correction is not None:
                    hooks.callback(_correct(linear, kept, correction).remove)
                    for handle in _enter(located, block, units[:width], correction):
                        hooks.callback(handle.remove)
                if width < len(units):
                    dropped = feature_indices(units[width:], size)
                    hooks.callback(_zero_inputs(linear, dropped).remove)
        yield


def _hand_on(biases: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
    def hand_on(
        module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        hidden = args[0]
        for bias in biases:
            hidden = hidden + bias.to(hidden)
        return hidden

    return hand_on


def constant_output_hook(bias: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    """A forward hook in whose place a module gives `bias`, or nothing, whatever it is given."""

    # At the output, so that a bias of the base is skipped too.
    def constant(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        nothing = torch.zeros_like(output)
        return nothing if bias is None else nothing + bias.to(output)

    return constant


def _zero_inputs(linear: nn.Linear, dropped: torch.Tensor) -> RemovableHandle:
    return linear.register_forward_pre_hook(
        lambda module, args: (args[0].index_fill(-1, dropped.to(args[0].device), 0.0),)
    )


def _enter(
    located: LocatedModel, block: Block, units: torch.Tensor, correction: Correction
) -> list[RemovableHandle]:
    """Hooks for what a correction has at the sub-block's entrance."""
    entry = correction.entry if isinstance(correction, LowRankCorrection) else None
    if entry is None:
        return []
    layer = located.layers[block.layer]
    norm = layer.attention_norm if block.part == "attention" else layer.mlp_norm
    return [
        norm.register_forward_hook(lambda module, args, output: output * entry.norm.to(output)),
        *(
            _add_low_rank(linear, kept, up, entry.down)
            for linear, kept, up in split_input_correction(located, block, units, entry.up)
        ),
    ]


def split_input_correction(
    located: LocatedModel, block: Block, units: torch.Tensor, up: torch.Tensor
) -> list[tuple[nn.Linear, torch.Tensor, torch.Tensor]]:
    """Each input projection, the features of `units` in it, and their rows of an entry's `up`."""
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


def _correct(linear: nn.Linear, kept: torch.Tensor, correction: Correction) -> RemovableHandle:
    def better(
        module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        return correction.correct(linear, args[0][..., kept.to(args[0].device)], output)

    return linear.register_forward_hook(better)
