"""Run a model layer by layer, with the arguments that its own forward passes to each layer."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pruners.architecture import LocatedModel
from pruners.data.rows import TokenBatch


@dataclass(frozen=True, slots=True)
class LayerReplay:
    """One batch before the first layer.

    `hidden` are the hidden states `[rows, length, hidden]`; `calls[l]` holds the keyword arguments
    (positions, rotary tables, attention mask) that the model's forward passes to layer `l`.
    """

    hidden: torch.Tensor
    calls: list[dict[str, Any]]

    def layer(self, located: LocatedModel, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return one layer's output for its input `hidden`, both `[rows, length, hidden]`."""
        return located.layers[index].module(hidden, **self.calls[index])


def final_hidden(located: LocatedModel, batch: TokenBatch) -> torch.Tensor:
    """Return the hidden states that the model passes to its head, `[rows, length, hidden]`."""
    body: Any = located.model.base_model
    device = located.embed.weight.device
    # A causal model never attends to padding on the right; an encoder needs a mask.
    masked = {} if located.causal else {"attention_mask": batch.valid.to(device)}
    hidden = body(batch.tokens.to(device), use_cache=False, **masked).last_hidden_state
    return located.final_norm(hidden) if located.norm_in_head else hidden


def record_layer_calls(located: LocatedModel, batch: TokenBatch) -> LayerReplay:
    """Record the arguments of every layer's call for one batch, without computing any layer."""
    with _recording(located) as (inputs, calls), torch.no_grad():
        final_hidden(located, batch)
    return LayerReplay(inputs[0], calls)


@contextmanager
def _recording(located: LocatedModel) -> Iterator[tuple[list[torch.Tensor], list[dict[str, Any]]]]:
    """Make layers return their input and record it with their arguments, while open.

    An instance attribute `forward` shadows that of the class until it is deleted.
    """
    inputs: list[torch.Tensor] = []
    calls: list[dict[str, Any]] = []

    # Some families pass by position what others pass by keyword.
    names = list(inspect.signature(located.layers[0].module.forward).parameters)[1:]

    def record(hidden: torch.Tensor, *args: Any, **call: Any) -> torch.Tensor:  # noqa: ANN401
        inputs.append(hidden)
        calls.append(dict(zip(names, args, strict=False)) | call)
        return hidden

    attributes = [vars(layer.module) for layer in located.layers]
    before = [instance.get("forward") for instance in attributes]
    try:
        for instance in attributes:
            instance["forward"] = record
        yield inputs, calls
    finally:
        for instance, forward in zip(attributes, before, strict=True):
            if forward is None:
                del instance["forward"]
            else:
                instance["forward"] = forward
