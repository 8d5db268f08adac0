"""From calibration rows to corrections, and the error of each step on held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.correction import Correction, LowRankCorrection, RefitCorrection, constant_correction
from pruners.realization.order import Order, feature_indices
from pruners.recovery.moments import LayerMoments, ProjectionMoments, stream_moments
from pruners.recovery.solve import fit_bias, fit_low_rank, fit_weights, relative_errors
from pruners.variant import Block, Part, VariantSpec

RIDGES = (1e-3, 1e-2, 1e-1)
"""Ridge strengths to choose from, as shares of the mean variance of the remaining inputs."""


@dataclass(frozen=True, slots=True)
class FitErrors:
    """Relative output error of one narrowed `o` or `down` on held-out rows, step by step.

    The projection has `inputs` remaining inputs. `none` is its error as masked, `bias` with the
    mean put right, `low_rank` with the residual of the wanted rank (equal to `bias` for rank 0),
    `refit` with the whole matrix, fitted with the best `ridge`.
    """

    block: Block
    inputs: int
    ridge: float
    none: float
    bias: float
    low_rank: float
    refit: float


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """Corrections of one variant, and the errors of each narrowed block."""

    corrections: dict[Block, Correction] = field(default_factory=dict)
    errors: list[FitErrors] = field(default_factory=list)

    def add(self, layer: "RecoveryResult") -> None:
        """Add the result of a further layer."""
        self.corrections.update(layer.corrections)
        self.errors.extend(layer.errors)


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """`rank` of the residual, 0 for the bias alone; `materialised` keeps the whole refit."""

    rank: int = 16
    materialised: bool = False


def recover(
    located: LocatedModel,
    specs: Sequence[VariantSpec],
    order: Order,
    rows: Sequence[torch.Tensor],
    options: RecoveryOptions,
    progress: Progress | None = None,
) -> list[RecoveryResult]:
    """Return corrections of many variants from one pass over the unpruned model.

    `rows` are 1-D token ids, ragged; a quarter of them is held out to choose the ridge. Matrices
    of one layer are in memory at a time. Blocks of full width need no correction; a skipped block
    is replaced by the mean of what it adds. Raises `RecoveryError` for fewer than two rows,
    `ValueError` if a spec does not fit the model.
    """
    for spec in specs:
        spec.check(located.shape)
    results = [RecoveryResult() for _ in specs]
    for layer in stream_moments(located, rows, progress):
        for spec, result in zip(specs, results, strict=True):
            result.add(recover_layer(layer, spec, order, options))
    return results


def recover_layer(
    layer: LayerMoments, spec: VariantSpec, order: Order, options: RecoveryOptions
) -> RecoveryResult:
    """Return the corrections of one layer of a variant."""
    index, result = layer.index, RecoveryResult()
    parts: tuple[tuple[Part, torch.Tensor, int, int], ...] = (
        ("attention", order.kv[index], spec.kv_groups[index], layer.features_per_group),
        ("mlp", order.ffn[index], spec.ffn[index], 1),
    )
    for part, units, width, size in parts:
        block, projection = Block(index, part), layer.projections[part]
        if width == 0:
            result.corrections[block] = constant_correction(projection.mean_added)
        elif width < len(units):
            kept = feature_indices(units[:width], size)
            correction, errors = _fit(projection, kept, options, block)
            result.corrections[block] = correction
            result.errors.append(errors)
    return result


@torch.no_grad()
def _fit(
    projection: ProjectionMoments, kept: torch.Tensor, options: RecoveryOptions, block: Block
) -> tuple[Correction, FitErrors]:
    """Return the correction of a projection whose inputs `kept`, int64 `[kept]`, remain."""
    fit, held_out = projection.fit, projection.held_out
    shared = fit.weight[:, kept]

    def error(replacement: torch.Tensor) -> float:
        bias = fit_bias(fit, kept, replacement)
        return relative_errors(held_out, kept, replacement, [bias])[0]

    tried = ((error(shared + refit.change), refit) for refit in fit_weights(fit, kept, RIDGES))
    refit_error, best = min(tried, key=lambda pair: pair[0])
    up, down_ = fit_low_rank(best.change, best.regularised, options.rank)
    approximate = shared + up @ down_
    biases = [torch.zeros_like(shared[:, 0]), fit_bias(fit, kept, shared)]
    none_error, bias_error = relative_errors(held_out, kept, shared, biases)
    errors = FitErrors(
        block=block,
        inputs=len(kept),
        ridge=best.ridge,
        none=none_error,
        bias=bias_error,
        low_rank=error(approximate),
        refit=refit_error,
    )
    if options.materialised:
        refitted = shared + best.change
        bias = fit_bias(fit, kept, refitted)
        return RefitCorrection(bias.float(), refitted.float()), errors
    bias = fit_bias(fit, kept, approximate)
    return LowRankCorrection(bias.float(), up.float(), down_.float()), errors
