"""A model at home in CPU memory whose layers are computed on another device, one at a time."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import send_to_device  # type: ignore[import-untyped]
from torch import nn

from pruners.architecture import LocatedModel


@contextmanager
def offload_layers(located: LocatedModel, device: torch.device) -> Iterator[None]:
    """While open, a layer or the head goes to `device` for a call and comes back after it.

    So the device needs room for one of them, its statistics and a batch. What passes between layers
    stays at home. Without gradients, which would need weights that have left.
    """
    modules = [*(layer.module for layer in located.layers), located.head]
    try:
        for module in modules:
            # An attribute of the instance shadows the class's `forward` until it is deleted; hooks
            # on the module itself still see tensors at home.
            vars(module)["forward"] = _away(module, device)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _away(module: nn.Module, device: torch.device) -> Callable[..., torch.Tensor]:
    forward = module.forward

    @functools.wraps(forward)
    def call(*args: object, **kwargs: object) -> torch.Tensor:
        home = next(module.parameters()).device
        module.to(device)
        try:
            output = forward(*send_to_device(args, device), **send_to_device(kwargs, device))
        finally:
            module.to(home)
        return output.to(home)

    return call
