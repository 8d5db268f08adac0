"""What a recovery is solved from: moments of every `o` and `down`, layer by layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import nn

from pruners.architecture import Decoder
from pruners.calibration import stream
from pruners.collectors import Activations, SecondMoments, Site, down, o
from pruners.depth import PARTS, Part
from pruners.recovery.correction import RecoveryError
from pruners.recovery.paired import PairedMoments
from pruners.recovery.solve import Inputs

_HELD_OUT = 4  # every fourth row chooses the ridge and is measured on


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear map, the inputs it is fitted on and the held-out ones."""

    module: nn.Linear
    fit: Inputs
    held_out: Inputs


def unpruned(
    decoder: Decoder, rows: Sequence[torch.Tensor], progress: Progress | None
) -> Iterator[tuple[int, dict[Part, Linear]]]:
    """Of the base itself, one layer at a time. Raises `RecoveryError` for fewer than two rows."""

    def watch(_: int) -> list[SecondMoments]:
        return [SecondMoments(features, site) for site, features in _maps(decoder)]

    fit, held_out = _parts(rows)
    for (index, first), (_, second) in zip(
        stream(decoder, fit, watch, progress=progress),
        stream(decoder, held_out, watch),
        strict=True,
    ):
        yield (
            index,
            _sites(
                decoder,
                index,
                [Inputs.unpruned(seen.mean, seen.matrix) for seen in first],
                [Inputs.unpruned(seen.mean, seen.matrix) for seen in second],
            ),
        )


def pruned(
    decoder: Decoder, rows: Sequence[torch.Tensor], progress: Progress | None
) -> Iterator[tuple[int, dict[Part, Linear]]]:
    """Of what the caller made of the layers before, beside the base's. Raises the same."""
    fit, held_out = _parts(rows)
    for (index, first), (_, second) in zip(
        _paired(decoder, fit, progress), _paired(decoder, held_out, None), strict=True
    ):
        yield index, _sites(decoder, index, first, second)


def _paired(
    decoder: Decoder, rows: Sequence[torch.Tensor], progress: Progress | None
) -> Iterator[tuple[int, list[Inputs]]]:
    base: list[Activations] = []

    def watch_base(_: int) -> list[Activations]:
        base[:] = [Activations(site) for site, _ in _maps(decoder)]
        return base

    def watch(_: int) -> list[PairedMoments]:
        return [
            PairedMoments(features, site, seen)
            for (site, features), seen in zip(_maps(decoder), base, strict=True)
        ]

    # The base goes first: its pass through a layer is over before the caller prunes it.
    for _, (index, seen) in zip(
        stream(decoder, rows, watch_base),
        stream(decoder, rows, watch, pruned_upstream=True, progress=progress),
        strict=True,
    ):
        yield index, [moments.inputs for moments in seen]


def _parts(rows: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The rows to fit on and those held out."""
    fit = [row for i, row in enumerate(rows) if i % _HELD_OUT]
    if not fit:
        raise RecoveryError("recovery needs at least 2 calibration rows: one is held out")
    return fit, list(rows[::_HELD_OUT])


def _maps(decoder: Decoder) -> list[tuple[Site, int]]:
    """Where the maps of a layer are, in the order of `PARTS`, and how many inputs they have."""
    shape = decoder.shape
    return [(o, shape.heads * shape.head_dim), (down, shape.ffn)]


def _sites(
    decoder: Decoder, index: int, fit: Sequence[Inputs], held_out: Sequence[Inputs]
) -> dict[Part, Linear]:
    layer = decoder.layers[index]
    modules = (layer.attention.o, layer.mlp.down)
    return {
        part: Linear(module, fitted, held)
        for part, module, fitted, held in zip(PARTS, modules, fit, held_out, strict=True)
    }
