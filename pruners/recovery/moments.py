"""What a recovery is solved from: moments at every `o` and `down`, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
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
from pruners.recovery.solve import LinearMoments
from pruners.variant import Part


@dataclass(frozen=True, slots=True)
class ProjectionMoments:
    """One output projection on the rows that it is fitted on and on held-out ones.

    `mean_added` is what its block adds to the residual stream on average, fp32 `[hidden]`.
    """

    fit: LinearMoments
    held_out: LinearMoments
    mean_added: torch.Tensor


@dataclass(frozen=True, slots=True)
class LayerMoments:
    """Both output projections of one layer: `o` is of part `attention`, `down` of `mlp`."""

    index: int
    projections: Mapping[Part, ProjectionMoments]
    features_per_group: int
    """Inputs of `o` that belong to one KV group."""


def stream_moments(
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    progress: Progress | None,
    *,
    pruned_upstream: bool = False,
) -> Iterator[LayerMoments]:
    """Yield the moments of one layer after another, held in memory one at a time.

    `rows` are 1-D token ids, ragged; some of them are held out. With `pruned_upstream`, a layer
    sees what the caller made of the layers before it (masks, corrections); else what the base
    gives. Raises `RecoveryError` for fewer than two rows.
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
    for (index, fitted), (_, unseen) in zip(
        collect_by_layer(located, fit, watch, pruned_upstream=pruned_upstream, progress=progress),
        collect_by_layer(located, held_out, watch, pruned_upstream=pruned_upstream),
        strict=True,
    ):
        layer, (heads, neurons, attention, mlp) = located.layers[index], fitted
        projections: dict[Part, ProjectionMoments] = {
            "attention": _projection(layer.attention.o, heads, unseen[0], attention),
            "mlp": _projection(layer.mlp.down, neurons, unseen[1], mlp),
        }
        yield LayerMoments(index, projections, shape.queries_per_group * shape.head_dim)


def _attention_join(layer: LocatedLayer) -> nn.Module:
    return layer.attention_output


def _mlp_join(layer: LocatedLayer) -> nn.Module:
    return layer.mlp_output


def _projection(
    module: nn.Linear, fit: SecondMomentMatrix, held_out: SecondMomentMatrix, join: OutputMoments
) -> ProjectionMoments:
    weight = module.weight.double().cpu()
    fitted, unseen = (LinearMoments(weight, one.mean, one.matrix) for one in (fit, held_out))
    return ProjectionMoments(fitted, unseen, join.mean)
