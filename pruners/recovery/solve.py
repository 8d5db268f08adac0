"""The algebra of a refit: what the kept inputs of one linear map can say of the lost ones.

All in fp64; `kept` are the indices of the inputs that stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Seen:
    """A map and the inputs h it was given: `weight` `[out, in]`, `mean` E[h], `second` E[h h^T]."""

    weight: torch.Tensor
    mean: torch.Tensor
    second: torch.Tensor

    @cached_property
    def across(self) -> torch.Tensor:
        """E[W h h^T], `[out, in]`: the dearest product, the same for every width."""
        return self.weight @ self.second

    @cached_property
    def energy(self) -> torch.Tensor:
        """E||W h||^2."""
        return (self.across * self.weight).sum()


def bias(seen: Seen, kept: torch.Tensor, replacement: torch.Tensor) -> torch.Tensor:
    """What to add, `[out]`, to give `replacement`, `[out, kept]`, the mean of the base's output.

    With the kept columns as they are: the bias compensation of FLAP (An et al. 2024, arXiv
    2312.11983).
    """
    return seen.weight @ seen.mean - replacement @ seen.mean[kept]


@dataclass(frozen=True, slots=True)
class Refit:
    """A `change` of the kept columns, `[out, kept]`, and the matrix it was regularised with.

    That is `within`, `[kept, kept]`: the covariance plus `ridge` times its mean diagonal.
    """

    ridge: float
    change: torch.Tensor
    within: torch.Tensor


def refits(seen: Seen, kept: torch.Tensor, ridges: Sequence[float]) -> Iterator[Refit]:
    """Least squares of the base's output on the kept inputs and a constant, for each ridge.

    The change, not the new weight, is drawn to zero, so that a strong ridge leaves the kept columns
    as they are (as in OSSCAR, Meng et al. 2024, arXiv 2403.12983, and CORP, arXiv 2602.05243).
    """
    mean = seen.mean[kept]
    covariance = seen.second[kept][:, kept] - torch.outer(mean, mean)
    across = seen.across[:, kept] - torch.outer(seen.weight @ seen.mean, mean)
    missing = across - seen.weight[:, kept] @ covariance
    # Inputs that never vary still need something to divide by.
    scale = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).eps)
    for ridge in ridges:
        within = covariance.clone()
        within.diagonal().add_(ridge * scale)
        change = torch.cholesky_solve(missing.T, torch.linalg.cholesky(within)).T
        yield Refit(ridge, change, within)


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


def relative_errors(
    seen: Seen, kept: torch.Tensor, replacement: torch.Tensor, added: Sequence[torch.Tensor]
) -> list[float]:
    """`E||W h - replacement h_kept - a||^2 / E||W h||^2` for each a of `added`, `[out]`.

    0 for a map that writes nothing.
    """
    if not seen.energy > 0:
        return [0.0] * len(added)
    shared = (seen.across[:, kept] * replacement).sum()
    own = ((replacement @ seen.second[kept][:, kept]) * replacement).sum()
    missing = bias(seen, kept, replacement)
    offsets = [a @ (a - 2 * missing) for a in added]
    return [
        max(0.0, float((seen.energy - 2 * shared + own + offset) / seen.energy))
        for offset in offsets
    ]
