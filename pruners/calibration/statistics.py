"""One pass over calibration rows that gathers statistics layer by layer.

A `Collector` gathers one statistic of one layer. All batches run through one layer before the next
begins, so that only one layer's statistics are held and only one layer needs to be on the device.
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
    """Moments of one layer: `ffn` of the inputs of `down`, `heads` of the inputs of `o`."""

    ffn: InputMoments
    heads: InputMoments


def calibrate(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
) -> list[LayerStatistics]:
    """Return the statistics of every layer over all tokens of `rows`.

    Each row is int64 `[tokens]`; lengths may differ, and padding is not counted.
    """
    shape = located.shape

    def make_collectors(_: int) -> tuple[InputMoments, InputMoments]:
        return InputMoments(shape.ffn, down_projection), InputMoments(
            shape.heads * shape.head_dim, output_projection
        )

    return [
        LayerStatistics(*moments)
        for _, moments in collect_by_layer(located, rows, make_collectors, progress=progress)
    ]


@torch.no_grad()
def collect_by_layer(
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    make_collectors: Callable[[int], LayerCollectors],
    *,
    pruned_upstream: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[int, LayerCollectors]]:
    """Yield each layer's index and its filled collectors as soon as the layer is done.

    `make_collectors(l)` makes the collectors of layer `l`. If the caller drops them after use, only
    one layer's are in memory. With `pruned_upstream`, each layer runs again after it was yielded,
    so that the caller's changes to it (a mask, a correction) reach the later layers.
    """
    inputs = list(make_batches(rows))
    replays = [record_layer_calls(located, batch) for batch in inputs]
    hidden = [run.hidden for run in replays]
    for index in track(range(len(located.layers)), "Calibrating", progress):
        collectors = make_collectors(index)
        before = list(hidden)
        for i, (batch, run) in enumerate(zip(inputs, replays, strict=True)):
            with _attached(located, index, collectors, _unpad_function(batch.valid)):
                hidden[i] = run.layer(located, index, before[i])
        yield index, collectors
        if pruned_upstream:
            pairs = zip(replays, before, strict=True)
            hidden = [run.layer(located, index, state) for run, state in pairs]


@contextmanager
def _attached(
    located: LocatedModel, index: int, collectors: Sequence[Collector], unpad: UnpadFunction
) -> Iterator[None]:
    handles = [h for c in collectors for h in c.attach(located.layers[index], unpad)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unpad_function(real: torch.Tensor) -> UnpadFunction:
    # Flattened, since some families join rows and positions within a block.
    flat = real.flatten()
    return lambda activations: activations.flatten(0, -2)[flat.to(activations.device)].float()
