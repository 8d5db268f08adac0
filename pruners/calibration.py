"""One streaming pass over calibration rows, layer by layer, that gathers what scorers need.

A statistic is a small `Collector` that hooks one layer. The pass walks one layer at a time through
all batches, so that only that layer's collectors are active and only it needs to be in fast memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from rich.progress import Progress
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruners.architecture import Decoder, Layer
from pruners.progress import tracked
from pruners.replay import replay
from pruners.rows import batches

Valid = Callable[[torch.Tensor], torch.Tensor]
"""Takes `[rows, length, features]` of the current batch to fp32 `[tokens, features]`, unpadded."""


class Collector(Protocol):
    """Reads one statistic of one layer while batches run through it."""

    def attach(self, layer: Layer, valid: Valid) -> RemovableHandle:
        """Hooks the layer; the hook updates the statistic with `valid` activations."""
        ...


class Moments:
    """First and second moment of each input feature of one linear module.

    Sums of a batch are taken in fp32 and added up in fp64, where small terms are not lost.
    """

    def __init__(self, features: int, site: Callable[[Layer], nn.Linear]) -> None:
        self.tokens = 0
        self._site = site
        self._sum = torch.zeros(features, dtype=torch.float64)
        self._squares = torch.zeros(features, dtype=torch.float64)

    def attach(self, layer: Layer, valid: Valid) -> RemovableHandle:
        def update(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs = valid(args[0])
            self.tokens += len(inputs)
            self._sum += inputs.sum(0).double().cpu()
            self._squares += inputs.square().sum(0).double().cpu()

        return self._site(layer).register_forward_pre_hook(update)

    @property
    def mean(self) -> torch.Tensor:
        """E[h], `[features]`."""
        return (self._sum / self.tokens).float()

    @property
    def second(self) -> torch.Tensor:
        """E[h^2], `[features]`."""
        return (self._squares / self.tokens).float()


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """What was seen in one layer: `ffn` at the input of `down`, `heads` at the input of `o`."""

    ffn: Moments
    heads: Moments


def calibrate(
    decoder: Decoder, rows: Sequence[torch.Tensor], progress: Progress | None = None
) -> list[LayerStatistics]:
    """Statistics of every layer over all tokens of `rows` (1-D, ragged), padding excluded."""
    shape = decoder.shape
    statistics = [
        LayerStatistics(
            ffn=Moments(shape.ffn, lambda layer: layer.mlp.down),
            heads=Moments(shape.heads * shape.head_dim, lambda layer: layer.attention.o),
        )
        for _ in decoder.layers
    ]
    collect(decoder, rows, [(layer.ffn, layer.heads) for layer in statistics], progress)
    return statistics


@torch.no_grad()
def collect(
    decoder: Decoder,
    rows: Sequence[torch.Tensor],
    collectors: Sequence[Sequence[Collector]],
    progress: Progress | None = None,
) -> None:
    """Runs all rows through the base; `collectors[l]` watch layer `l`."""
    inputs = list(batches(rows))
    replays = [replay(decoder, batch) for batch in inputs]
    hidden = [run.hidden for run in replays]
    for index in tracked(range(len(decoder.layers)), "Calibrating", progress):
        for i, (batch, run) in enumerate(zip(inputs, replays, strict=True)):
            valid = _valid(batch.valid)
            handles = [c.attach(decoder.layers[index], valid) for c in collectors[index]]
            try:
                hidden[i] = run.layer(decoder, index, hidden[i])
            finally:
                for handle in handles:
                    handle.remove()


def _valid(real: torch.Tensor) -> Valid:
    return lambda activations: activations[real.to(activations.device)].float()
