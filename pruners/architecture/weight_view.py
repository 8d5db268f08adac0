"""Views of projections that a module stores transposed, packed with others or scaled."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D


class ModuleView(nn.Linear):
    """A projection that the module `source` computes, as an `nn.Linear` without parameters."""

    source: nn.Module

    def __init__(self, source: nn.Module, in_features: int, out_features: int) -> None:
        nn.Module.__init__(self)
        # A registered submodule would make PyTorch count the parameters twice.
        object.__setattr__(self, "source", source)
        self.in_features = in_features
        self.out_features = out_features


class OutputView(ModuleView):
    """Outputs `start:stop` of a module as an `nn.Linear`; subclasses say how it stores its weight.

    `weight` `[out, in]` and `bias` `[out]` are views: writing to them changes the model. Hooks are
    registered on the module and receive only this projection's columns of its output.
    """

    def __init__(self, source: nn.Module, in_features: int, start: int, stop: int) -> None:
        super().__init__(source, in_features, stop - start)
        self.columns = slice(start, stop)

    def moved_to(self, source: nn.Module, start: int, count: int) -> "OutputView":
        """Return the view of `count` outputs of another module of the same class, from `start`."""
        view: OutputView = type(self)(source, start, start + count)  # type: ignore[call-arg]
        return view

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map `[..., in]` to `[..., out]`, with the module's hooks."""
        output: torch.Tensor = self.source(input)
        return output[..., self.columns]

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], **options: bool
    ) -> RemovableHandle:
        """Register the hook on the module, whose input is this projection's."""
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


class LinearView(OutputView):
    """Outputs `start:stop` of an `nn.Linear` that computes several projections side by side."""

    source: nn.Linear

    def __init__(self, source: nn.Linear, start: int, stop: int) -> None:
        super().__init__(source, source.in_features, start, stop)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Return the weight, `[out, in]`."""
        return self.source.weight[self.columns]

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        """Return the bias, `[out]`, if there is one."""
        return None if self.source.bias is None else self.source.bias[self.columns]


class Conv1DView(OutputView):
    """Outputs `start:stop` of a `Conv1D`, which stores its weight transposed."""

    source: "Conv1D"

    def __init__(self, source: "Conv1D", start: int = 0, stop: int | None = None) -> None:
        super().__init__(source, source.nx, start, source.nf if stop is None else stop)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Return the weight, `[out, in]`."""
        return self.source.weight[:, self.columns].T

    @property
    def bias(self) -> torch.Tensor:  # type: ignore[override]
        """Return the bias, `[out]`."""
        return self.source.bias[self.columns]


class ScaledHead(ModuleView):
    """An output head whose logits are divided by `scale`, as an `nn.Linear`.

    `weight` is the head's divided by `scale`, a copy.
    """

    source: nn.Linear

    def __init__(self, source: nn.Linear, scale: float) -> None:
        super().__init__(source, source.in_features, source.out_features)
        self.scale = scale

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Return the weight, `[vocab, hidden]`."""
        return self.source.weight / self.scale

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        """Return the bias, `[vocab]`, if there is one."""
        return None if self.source.bias is None else self.source.bias / self.scale

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map hidden states `[..., hidden]` to logits `[..., vocab]`."""
        logits: torch.Tensor = self.source(input) / self.scale
        return logits


def stored_module(projection: nn.Module) -> nn.Module:
    """Return the module of the model that holds this projection."""
    return projection.source if isinstance(projection, ModuleView) else projection
