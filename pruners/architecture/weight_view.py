"""One projection inside a module that stores it differently: transposed, or packed with others."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D


class Conv1DView(nn.Linear):
    """Outputs `start:stop` of a `Conv1D`, seen as the `nn.Linear` that they are.

    `weight` `[out, in]` and `bias` `[out]` are views: writing to them writes to the model. Hooks go
    to the `Conv1D` itself and see this projection's share of its output. The view holds no
    parameters of its own.
    """

    source: Conv1D

    def __init__(self, source: Conv1D, start: int = 0, stop: int | None = None) -> None:
        nn.Module.__init__(self)
        # Past nn.Module's registry, or the parameters would be counted twice.
        object.__setattr__(self, "source", source)
        self.columns = slice(start, source.nf if stop is None else stop)
        self.in_features = source.nx
        self.out_features = self.columns.stop - start

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self.source.weight[:, self.columns].T

    @property
    def bias(self) -> torch.Tensor:  # type: ignore[override]
        return self.source.bias[self.columns]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight, self.bias)

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], **options: bool
    ) -> RemovableHandle:
        return self.source.register_forward_pre_hook(hook, **options)

    def register_forward_hook(self, hook: Callable[..., Any], **options: bool) -> RemovableHandle:
        def share(module: nn.Module, *inputs: Any) -> torch.Tensor | None:  # noqa: ANN401
            *before, output = inputs
            result = hook(module, *before, output[..., self.columns])
            if result is None:
                return None
            whole = output.clone()
            whole[..., self.columns] = result
            return whole

        return self.source.register_forward_hook(share, **options)


def stored_module(projection: nn.Linear) -> nn.Module:
    """The model's own module that holds this projection."""
    return projection.source if isinstance(projection, Conv1DView) else projection
