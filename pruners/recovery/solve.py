"""The algebra of a refit: what the remaining inputs of one linear map can say of the removed ones.

All tensors are fp64. `kept` are the indices of the inputs that remain, int64 `[kept]`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class LinearMoments:
    """A linear map and the moments of its inputs h.

    `weight` W is `[out, in]`, `mean` E[h] `[in]`, `second` E[h h^T] `[in, in]`.
    """

    weight: torch.Tensor
    mean: torch.Tensor
    second: torch.Tensor

    @cached_property
    def cross(self) -> torch.Tensor:
        """E[W h h^T], `[out, in]`: the most expensive product, the same for every width."""
        return self.weight @ self.second

    @cached_property
    def energy(self) -> torch.Tensor:
        """E||W h||^2, a scalar."""
        return (self.cross * self.weight).sum()


def fit_bias(moments: LinearMoments, kept: torch.Tensor, replacement: torch.Tensor) -> torch.Tensor:
    """Return the bias `[out]` that gives `replacement` `[out, kept]` the mean of the base's output.

    bias = W E[h] - replacement E[h_kept]. Where `replacement` are the base's own columns, this is
    the bias compensation of FLAP (An et al. 2024, arXiv 2312.11983).
    """
    return moments.weight @ moments.mean - replacement @ moments.mean[kept]


@dataclass(frozen=True, slots=True)
class Refit:
    """A `change` of the remaining columns, `[out, kept]`, and the matrix it was solved with.

    `regularised` is cov(h_kept) + `ridge` mean(diag(cov(h_kept))) I, `[kept, kept]`.
    """

    ridge: float
    change: torch.Tensor
    regularised: torch.Tensor


def fit_weights(
    moments: LinearMoments, kept: torch.Tensor, ridges: Sequence[float]
) -> Iterator[Refit]:
    """Yield, for each ridge, the least-squares fit of the base's output to the remaining inputs.

    change = (cov(W h, h_kept) - W_kept cov(h_kept)) regularised^-1, with a free constant. The
    change, not the new weight, is drawn to zero, so that a strong ridge leaves the remaining
    columns as they are, as in OSSCAR (Meng et al. 2024, arXiv 2403.12983) and CORP (arXiv
    2602.05243).
    """
    mean = moments.mean[kept]
    covariance = moments.second[kept][:, kept] - torch.outer(mean, mean)
    cross = moments.cross[:, kept] - torch.outer(moments.weight @ moments.mean, mean)
    missing = cross - moments.weight[:, kept] @ covariance
    # Inputs that never vary still need something to divide by.
    scale = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).eps)
    for ridge in ridges:
        regularised = covariance.clone()
        regularised.diagonal().add_(ridge * scale)
        change = torch.cholesky_solve(missing.T, torch.linalg.cholesky(regularised)).T
        yield Refit(ridge, change, regularised)


def fit_low_rank(
    change: torch.Tensor, second: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best `up` `[out, rank]` and `down` `[rank, kept]` for `change` `[out, kept]`.

    They minimise E||(change - up @ down) h||^2 for inputs with second moments `second`
    `[kept, kept]`: the truncated SVD of the whitened change (SVD-LLM, Wang et al. 2024, arXiv
    2403.07378). Its left singular vectors are the eigenvectors of change @ second @ change^T, so
    that no matrix is inverted.
    """
    _, vectors = torch.linalg.eigh(change @ second @ change.T)  # rising eigenvalues
    up = vectors[:, len(vectors) - min(rank, len(vectors)) :]
    return up, up.T @ change


def relative_errors(
    moments: LinearMoments,
    kept: torch.Tensor,
    replacement: torch.Tensor,
    biases: Sequence[torch.Tensor],
) -> list[float]:
    """Return E||W h - replacement h_kept - bias||^2 / E||W h||^2 for each bias `[out]`.

    `replacement` is `[out, kept]`. The error is 0 for a map that writes nothing.
    """
    if not moments.energy > 0:
        return [0.0] * len(biases)
    shared = (moments.cross[:, kept] * replacement).sum()
    squared = ((replacement @ moments.second[kept][:, kept]) * replacement).sum()
    best_bias = fit_bias(moments, kept, replacement)
    offsets = [bias @ (bias - 2 * best_bias) for bias in biases]
    return [
        max(0.0, float((moments.energy - 2 * shared + squared + offset) / moments.energy))
        for offset in offsets
    ]
