"""The `mask` realization: a model behaves as a variant while a context is open.

For measuring quality only: nothing gets smaller or faster.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruners.architecture import Decoder
from pruners.order import Order, features
from pruners.variant import VariantSpec


@contextmanager
def mask(decoder: Decoder, spec: VariantSpec, order: Order) -> Iterator[None]:
    """Zeroes what `spec` leaves out: all units of each layer behind the kept prefix of `order`.

    FFN neurons at the input of `down`, KV groups (through their query heads) at the input of `o`;
    a sub-block of width 0 adds exactly nothing, and a layer without both hands its input on. Full
    widths are left alone, so that the base stays bit-identical. Weights are never touched and all
    hooks are gone on exit. Raises `ValueError` if the spec does not fit the model.
    """
    spec.check(decoder.shape)
    queries = decoder.shape.queries_per_group * decoder.shape.head_dim
    with ExitStack() as hooks:
        for index, layer in enumerate(decoder.layers):
            if spec.kv_groups[index] == spec.ffn[index] == 0:
                # As a whole, since norms behind the residual sums would go on without the blocks.
                hooks.callback(layer.module.register_forward_hook(_hand_on).remove)
                continue
            for linear, units, width, size in (
                (layer.attention.o, order.kv[index], spec.kv_groups[index], queries),
                (layer.mlp.down, order.ffn[index], spec.ffn[index], 1),
            ):
                if width == 0:
                    hooks.callback(_silence(linear).remove)
                elif width < len(units):
                    dropped = features(units[width:], size)
                    hooks.callback(_zero_inputs(linear, dropped).remove)
        yield


def _hand_on(
    module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
) -> torch.Tensor:
    return args[0]


def _silence(linear: nn.Linear) -> RemovableHandle:
    # At the output, so that a bias is skipped too.
    return linear.register_forward_hook(lambda module, args, output: torch.zeros_like(output))


def _zero_inputs(linear: nn.Linear, dropped: torch.Tensor) -> RemovableHandle:
    index = dropped.to(linear.weight.device)
    return linear.register_forward_pre_hook(
        lambda module, args: (args[0].index_fill(-1, index, 0.0),)
    )
