"""One streaming pass over calibration rows, layer by layer, that gathers what scorers need.

A statistic is a small `Collector` that hooks one layer. The pass walks one layer at a time through
all batches, so that only that layer's statistics exist and only it needs to be in fast memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.collectors import (
    Collector,
    InputMoments,
    UnpadFunction,
    down_projection,
    output_projection,
)
from pruners.calibration.layer_replay import record_layer_calls
from pruners.data.rows import make_batches
from pruners.support.progress import track

LayerCollectors = TypeVar("LayerCollectors", bound=Sequence[Collector])


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """What was seen in one layer: `ffn` at the input of `down`, `heads` at the input of `o`."""

    ffn: InputMoments
    heads: InputMoments


def calibrate(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
) -> list[LayerStatistics]:
    """Statistics of every layer over all tokens of `rows` (1-D, ragged), padding excluded."""
    shape = located.shape

    def watch(_: int) -> tuple[InputMoments, InputMoments]:
        return InputMoments(shape.ffn, down_projection), InputMoments(
            shape.heads * shape.head_dim, output_projection
        )

    return [
        LayerStatistics(*seen)
        for _, seen in collect_by_layer(located, rows, watch, progress=progress)
    ]


@torch.no_grad()
def collect_by_layer(
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    watch: Callable[[int], LayerCollectors],
    *,
    pruned_upstream: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, LayerCollectors]]:
    """Yields each layer's index and its collectors, filled, as soon as the layer is done.

    `watch(l)` makes the collectors of layer `l`; drop them when handled, and one layer's are all
    that is held. With `pruned_upstream`, a layer is run again after it was yielded, so that what
    the caller did to it by then (a mask, a correction) reaches the layers behind it.
    """
    inputs = list(make_batches(rows))
    replays = [record_layer_calls(located, batch) for batch in inputs]
    hidden = [run.hidden for run in replays]
    for index in track(range(len(located.layers)), "Calibrating", progress):
        watching = watch(index)
        before = list(hidden)
        for i, (batch, run) in enumerate(zip(inputs, replays, strict=True)):
            with _watched(located, index, watching, _valid(batch.valid)):
                hidden[i] = run.layer(located, index, before[i])
        yield index, watching
        if pruned_upstream:
            pairs = zip(replays, before, strict=True)
            hidden = [run.layer(located, index, state) for run, state in pairs]


@contextmanager
def _watched(
    located: LocatedModel, index: int, collectors: Sequence[Collector], valid: UnpadFunction
) -> Iterator[None]:
    handles = [h for c in collectors for h in c.attach(located.layers[index], valid)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _valid(real: torch.Tensor) -> UnpadFunction:
    # Flat, as some families join rows and positions inside a block.
    flat = real.flatten()
    return lambda activations: activations.flatten(0, -2)[flat.to(activations.device)].float()
