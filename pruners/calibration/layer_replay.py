"""Runs a decoder layer by layer, with what its model passes to each layer."""

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
    """One batch in front of the first layer.

    `hidden` is `[rows, length, hidden]`; `calls[l]` holds the keyword arguments (positions,
    rotary tables, attention mask) that the model's own forward gives to layer `l`.
    """

    hidden: torch.Tensor
    calls: list[dict[str, Any]]

    def layer(self, located: LocatedModel, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """The output of one layer for its input `hidden`."""
        return located.layers[index].module(hidden, **self.calls[index])


def final_hidden(located: LocatedModel, batch: TokenBatch) -> torch.Tensor:
    """What the model gives to its head, `[rows, length, hidden]`."""
    body: Any = located.model.base_model
    device = located.embed.weight.device
    # Padding stands behind all that a causal model reads; an encoder must be told of it.
    masked = {} if located.causal else {"attention_mask": batch.valid.to(device)}
    hidden = body(batch.tokens.to(device), use_cache=False, **masked).last_hidden_state
    return located.final_norm(hidden) if located.norm_in_head else hidden


def record_layer_calls(located: LocatedModel, batch: TokenBatch) -> LayerReplay:
    """Records the arguments of every layer without computing any."""
    with _recording(located) as (inputs, calls), torch.no_grad():
        final_hidden(located, batch)
    return LayerReplay(inputs[0], calls)


@contextmanager
def _recording(located: LocatedModel) -> Iterator[tuple[list[torch.Tensor], list[dict[str, Any]]]]:
    """Layers hand their input on and note how they were called.

    An attribute of the instance shadows the class's `forward` until it is deleted.
    """
    inputs: list[torch.Tensor] = []
    calls: list[dict[str, Any]] = []

    # Some families pass by position what others pass by name.
    names = list(inspect.signature(located.layers[0].module.forward).parameters)[1:]

    def note(hidden: torch.Tensor, *args: Any, **call: Any) -> torch.Tensor:  # noqa: ANN401
        inputs.append(hidden)
        calls.append(dict(zip(names, args, strict=False)) | call)
        return hidden

    attributes = [vars(layer.module) for layer in located.layers]
    before = [own.get("forward") for own in attributes]
    try:
        for own in attributes:
            own["forward"] = note
        yield inputs, calls
    finally:
        for own, forward in zip(attributes, before, strict=True):
            if forward is None:
                del own["forward"]
            else:
                own["forward"] = forward
