"""What a recovery is solved from: moments of every `o` and `down`, layer by layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import nn

from pruners.architecture import LocatedLayer, LocatedModel
from pruners.calibration.collectors import OutputMoments, SecondMomentMatrix, down, o
from pruners.calibration.statistics import stream
from pruners.correction import RecoveryError
from pruners.data.rows import held_back, to_fit
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
            SecondMomentMatrix(shape.heads * shape.head_dim, o),
            SecondMomentMatrix(shape.ffn, down),
            OutputMoments(shape.hidden, _attention_join),
            OutputMoments(shape.hidden, _mlp_join),
        )

    fit, held_out = to_fit(rows), held_back(rows)
    if not fit:
        raise RecoveryError(
            "recovery needs at least 2 calibration rows, as one is held out; give more text"
        )
    for (index, seen), (_, unseen) in zip(
        stream(located, fit, watch, pruned_upstream=pruned_upstream, progress=progress),
        stream(located, held_out, watch, pruned_upstream=pruned_upstream),
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
    return layer.attention_join


def _mlp_join(layer: LocatedLayer) -> nn.Module:
    return layer.mlp_join


def _linear(
    module: nn.Linear, fit: SecondMomentMatrix, held_out: SecondMomentMatrix, join: OutputMoments
) -> Linear:
    weight = module.weight.double().cpu()
    seen, unseen = (Seen(weight, inputs.mean, inputs.matrix) for inputs in (fit, held_out))
    return Linear(seen, unseen, join.mean)
