"""What a cut in one layer does to the model's output, computed from that layer on."""

from collections.abc import Callable
from typing import TypeAlias

import torch

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import record_layer_calls
from pruners.data.rows import TokenBatch

LayerForward: TypeAlias = Callable[[int, torch.Tensor], torch.Tensor]
"""Gives a layer's output for its input."""


class LayerProbe:
    """One batch, and the hidden state in front of each layer of the base.

    Hooks that are open count; `run` may stand in for how a layer is computed.
    """

    def __init__(self, located: LocatedModel, batch: TokenBatch) -> None:
        self._decoder = located
        self._replay = record_layer_calls(located, batch)
        self._scored = batch.scored_positions()
        self._inputs: list[torch.Tensor] = []
        self.targets = batch.targets(self._scored)
        self.base = self.record_inputs()

    def layer(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """One layer's output, as the model computes it."""
        return self._replay.layer(self._decoder, index, hidden)

    def record_inputs(self, run: LayerForward | None = None) -> torch.Tensor:
        """Recompute the inputs of all layers; return what `final_hidden_from(0)` would."""
        run = run or self.layer
        self._inputs = []
        hidden = self._replay.hidden
        for index in range(len(self._decoder.layers)):
            self._inputs.append(hidden)
            hidden = run(index, hidden)
        return self._finish(hidden)

    def final_hidden_from(self, start: int, run: LayerForward | None = None) -> torch.Tensor:
        """Final hidden states `[scored positions, hidden]`, layers from `start` on rerun."""
        run = run or self.layer
        hidden = self._inputs[start]
        for index in range(start, len(self._decoder.layers)):
            hidden = run(index, hidden)
        return self._finish(hidden)

    def _finish(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._decoder.final_norm(hidden[self._scored.to(hidden.device)])
