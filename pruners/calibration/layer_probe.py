"""Measure a change in one layer by running only the layers from there on."""

from collections.abc import Callable
from typing import TypeAlias

import torch

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import record_layer_calls
from pruners.data.rows import TokenBatch

LayerForward: TypeAlias = Callable[[int, torch.Tensor], torch.Tensor]
"""Computes layer number `int`: hidden states `[rows, length, hidden]` in and out."""


class LayerProbe:
    """One batch, and the base's hidden states before each layer.

    Layers are computed with all hooks that are active at the time. `targets` are the next tokens of
    the scored positions, `[positions]`; `base` are the base's final hidden states there,
    `[positions, hidden]`. A `LayerForward` given as `run` replaces how each layer is computed.
    """

    def __init__(self, located: LocatedModel, batch: TokenBatch) -> None:
        self._located = located
        self._replay = record_layer_calls(located, batch)
        self._scored = batch.scored_positions()
        self._inputs: list[torch.Tensor] = []
        self.targets = batch.targets(self._scored)
        self.base = self.record_inputs()

    def layer(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return one layer's output `[rows, length, hidden]` for its input `hidden`."""
        return self._replay.layer(self._located, index, hidden)

    def record_inputs(self, run: LayerForward | None = None) -> torch.Tensor:
        """Recompute the inputs of all layers; return final hidden states `[positions, hidden]`."""
        run = run or self.layer
        self._inputs = []
        hidden = self._replay.hidden
        for index in range(len(self._located.layers)):
            self._inputs.append(hidden)
            hidden = run(index, hidden)
        return self._final_norm(hidden)

    def final_hidden_from(self, start: int, run: LayerForward | None = None) -> torch.Tensor:
        """Return the final hidden states `[positions, hidden]`, running layers from `start` on."""
        run = run or self.layer
        hidden = self._inputs[start]
        for index in range(start, len(self._located.layers)):
            hidden = run(index, hidden)
        return self._final_norm(hidden)

    def _final_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._located.final_norm(hidden[self._scored.to(hidden.device)])
