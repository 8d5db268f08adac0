"""The algebra of a refit: what the kept inputs of one linear map can say of the lost ones.

All in fp64. `weight` is `[out, in]`, `kept` the indices of the inputs that stay.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Inputs:
    """Moments of the inputs h of a map: `mean` is E[h], `[in]`, `second` E[h h^T], `[in, in]`."""

    mean: torch.Tensor
    second: torch.Tensor


def bias(
    weight: torch.Tensor, kept: torch.Tensor, replacement: torch.Tensor, inputs: Inputs
) -> torch.Tensor:
    """What to add, `[out]`, to give `replacement`, `[out, kept]`, the mean of the base's output.

    With the kept columns as they are: the bias compensation of FLAP (An et al. 2024, arXiv
    2312.11983).
    """
    return weight @ inputs.mean - replacement @ inputs.mean[kept]


def refit(
    weight: torch.Tensor, kept: torch.Tensor, inputs: Inputs, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares of the base's output on the kept inputs and a constant.

    Returns the change of the kept columns, `[out, kept]`, and the matrix it was regularised with,
    `[kept, kept]`: the covariance plus `ridge` times its mean diagonal. The change, not the new
    weight, is drawn to zero, so that a strong ridge leaves the kept columns as they are (as in
    OSSCAR, Meng et al. 2024, arXiv 2403.12983, and CORP, arXiv 2602.05243).
    """
    mean = inputs.mean[kept]
    within = inputs.second[kept][:, kept] - torch.outer(mean, mean)
    across = inputs.second[:, kept] - torch.outer(inputs.mean, mean)
    missing = weight @ across - weight[:, kept] @ within
    # Inputs that never vary still need something to divide by.
    strength = ridge * within.diagonal().mean().clamp(min=torch.finfo(torch.float64).eps)
    within = within + strength * torch.eye(len(kept), dtype=within.dtype)
    return torch.cholesky_solve(missing.T, torch.linalg.cholesky(within)).T, within


def low_rank(
    change: torch.Tensor, within: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `up @ down` of this rank: `up` is `[out, rank]`, `down` `[rank, kept]`.

    Minimises `||(change - up @ down) X||` for inputs of second moments `within`: the truncated SVD
    of the whitened change (SVD-LLM, Wang et al. 2024, arXiv 2403.07378), whose left singular
    vectors are the eigenvectors of `change @ within @ change^T`; no matrix is inverted.
    """
    _, vectors = torch.linalg.eigh(change @ within @ change.T)  # rising eigenvalues
    up = vectors[:, len(vectors) - min(rank, len(vectors)) :]
    return up, up.T @ change


def relative_error(
    weight: torch.Tensor,
    kept: torch.Tensor,
    replacement: torch.Tensor,
    added: torch.Tensor,
    inputs: Inputs,
) -> float:
    """`E||W h - replacement h_kept - added||^2 / E||W h||^2`; 0 for a map that writes nothing."""
    energy = _product(weight, inputs.second, weight)
    if not energy > 0:
        return 0.0
    shared = _product(weight, inputs.second[:, kept], replacement)
    own = _product(replacement, inputs.second[kept][:, kept], replacement)
    offset = added @ (added - 2 * bias(weight, kept, replacement, inputs))
    return max(0.0, float((energy - 2 * shared + own + offset) / energy))


def _product(one: torch.Tensor, moments: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return ((one @ moments) * other).sum()
