"""Views of projections that a module stores transposed or packed with others."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D


class Conv1DView(nn.Linear):
    """Outputs `start:stop` of a `Conv1D` as an `nn.Linear`.

    `weight` `[out, in]` and `bias` `[out]` are views: writing to them changes the model. Hooks are
    registered on the `Conv1D` and receive only this projection's columns of its output. The view
    has no parameters of its own.
    """

    source: Conv1D

    def __init__(self, source: Conv1D, start: int = 0, stop: int | None = None) -> None:
        nn.Module.__init__(self)
        # A registered submodule would make PyTorch count the parameters twice.
        object.__setattr__(self, "source", source)
        self.columns = slice(start, source.nf if stop is None else stop)
        self.in_features = source.nx
        self.out_features = self.columns.stop - start

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Return the weight, `[out, in]`."""
        return self.source.weight[:, self.columns].T

    @property
    def bias(self) -> torch.Tensor:  # type: ignore[override]
        """Return the bias, `[out]`."""
        return self.source.bias[self.columns]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `[..., in]` to `[..., out]`."""
        return F.linear(input, self.weight, self.bias)

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], **options: bool
    ) -> RemovableHandle:
        """Register the hook on the `Conv1D`, whose input is this projection's."""
        return self.source.register_forward_pre_hook(hook, **options)

    def register_forward_hook(self, hook: Callable[..., Any], **options: bool) -> RemovableHandle:
        """Register the hook so that it reads and replaces only this projection's outputs."""

        def call_with_columns(module: nn.Module, *inputs: Any) -> torch.Tensor | None:  # noqa: ANN401
            *before, output = inputs
            result = hook(module, *before, output[..., self.columns])
            if result is None:
                return None
            whole = output.clone()
            whole[..., self.columns] = result
            return whole

        return self.source.register_forward_hook(call_with_columns, **options)


def stored_module(projection: nn.Linear) -> nn.Module:
    """Return the module of the model that holds this projection."""
    return projection.source if isinstance(projection, Conv1DView) else projection
