"""What a recovery is solved from: moments of every `o` and `down`, layer by layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import nn

from pruners.architecture import LocatedLayer, LocatedModel
from pruners.calibration.collectors import (
    OutputMoments,
    SecondMomentMatrix,
    down_projection,
    output_projection,
)
from pruners.calibration.statistics import collect_by_layer
from pruners.correction import RecoveryError
from pruners.data.rows import fitting_rows, held_out_rows
from pruners.recovery.solve import Seen
from pruners.variant import Part


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear map on the inputs it is fitted on and on held-out ones.

    `adds` is what its block adds to the residual stream on average, `[hidden]`.
    """

    fit: Seen
    held_out: Seen
    adds: torch.Tensor


def moments(
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    progress: Progress | None,
    *,
    pruned_upstream: bool = False,
) -> Iterator[tuple[int, dict[Part, Linear]]]:
    """One layer at a time: of the base, or behind what the caller made of the layers before.

    Raises `RecoveryError` for fewer than two rows.
    """
    shape = located.shape

    def watch(
        _: int,
    ) -> tuple[SecondMomentMatrix, SecondMomentMatrix, OutputMoments, OutputMoments]:
        return (
            SecondMomentMatrix(shape.heads * shape.head_dim, output_projection),
            SecondMomentMatrix(shape.ffn, down_projection),
            OutputMoments(shape.hidden, _attention_join),
            OutputMoments(shape.hidden, _mlp_join),
        )

    fit, held_out = fitting_rows(rows), held_out_rows(rows)
    if not fit:
        raise RecoveryError(
            "recovery needs at least 2 calibration rows, as one is held out; give more text"
        )
    for (index, seen), (_, unseen) in zip(
        collect_by_layer(located, fit, watch, pruned_upstream=pruned_upstream, progress=progress),
        collect_by_layer(located, held_out, watch, pruned_upstream=pruned_upstream),
        strict=True,
    ):
        layer, (heads, neurons, attention, mlp) = located.layers[index], seen
        yield (
            index,
            {
                "attention": _linear(layer.attention.o, heads, unseen[0], attention),
                "mlp": _linear(layer.mlp.down, neurons, unseen[1], mlp),
            },
        )


def _attention_join(layer: LocatedLayer) -> nn.Module:
    return layer.attention_output


def _mlp_join(layer: LocatedLayer) -> nn.Module:
    return layer.mlp_output


def _linear(
    module: nn.Linear, fit: SecondMomentMatrix, held_out: SecondMomentMatrix, join: OutputMoments
) -> Linear:
    weight = module.weight.double().cpu()
    seen, unseen = (Seen(weight, inputs.mean, inputs.matrix) for inputs in (fit, held_out))
    return Linear(seen, unseen, join.mean)
