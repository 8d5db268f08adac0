"""Run a model that stays in CPU memory on another device, one layer at a time."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import send_to_device  # type: ignore[import-untyped]
from torch import nn

from pruners.architecture import LocatedModel, stored_module


@contextmanager
def offload_layers(located: LocatedModel, device: torch.device) -> Iterator[None]:
    """Move each layer and the head to `device` for the time of its call, while open.

    The device needs memory for one of them, its statistics and a batch. Activations between layers
    stay on the model's own device. Gradients do not work, since the weights move away again.
    """
    modules = [*(layer.module for layer in located.layers), stored_module(located.head)]
    try:
        for module in modules:
            # An instance attribute shadows the class's `forward` until it is deleted. Hooks on the
            # module itself still receive tensors on its own device.
            vars(module)["forward"] = _forward_on(module, device)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _forward_on(module: nn.Module, device: torch.device) -> Callable[..., torch.Tensor]:
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
