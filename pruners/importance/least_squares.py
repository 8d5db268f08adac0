"""Backward elimination: the unit that the others can best make up for goes next."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.collectors import SecondMomentMatrix, down_projection, output_projection
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.base import ImportanceScores, stack_scores

_ROUNDS = 192
RIDGE = 1e-2
"""Added to the second moments, as a share of their mean diagonal."""


@dataclass(frozen=True, slots=True)
class Elimination:
    """`units` in the order they go, `[units]`; `error[i]` with the first i+1 gone and the rest
    refitted, as a share of the output's energy, `[units]`, never falling."""

    units: torch.Tensor
    error: torch.Tensor

    def scores(self) -> torch.Tensor:
        """The error at which each unit goes, by unit: higher is kept longer."""
        scores = torch.empty_like(self.error)
        scores[self.units] = self.error
        return scores


class LeastSquares:
    """Structured OBS over the input units of `down` and `o`.

    Removing unit j and refitting the other columns costs `W_j^T [H^-1]_jj^-1 W_j` of output error
    with `H = E[h h^T]` (Hassibi & Stork 1993); the cheapest goes, the others take over, and so on:
    OSSCAR (Meng et al. 2024, arXiv 2403.12983) and SlimGPT (Ling et al. 2024, arXiv 2412.18110).
    One order for all widths, hence nested. Scores are the relative output error at which a unit
    goes, so that they compare between layers and serve as cached errors of an allocation. Meant for
    use with a refit or its low-rank form; without, `ActivationNorm` may keep more.
    """

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        shape = located.shape
        group = shape.queries_per_group * shape.head_dim

        def watch(_: int) -> tuple[SecondMomentMatrix, SecondMomentMatrix]:
            return (
                SecondMomentMatrix(shape.ffn, down_projection),
                SecondMomentMatrix(shape.heads * shape.head_dim, output_projection),
            )

        ffn, kv = [], []
        for index, (neurons, heads) in collect_by_layer(located, rows, watch, progress=progress):
            layer = located.layers[index]
            at_once = max(1, shape.ffn // _ROUNDS)
            ffn.append(eliminate(layer.mlp.down.weight, neurons.matrix, at_once=at_once).scores())
            kv.append(eliminate(layer.attention.o.weight, heads.matrix, size=group).scores())
        return stack_scores(ffn, kv)


@torch.no_grad()
def eliminate(
    weight: torch.Tensor,
    second: torch.Tensor,
    size: int = 1,
    at_once: int = 1,
    ridge: float = RIDGE,
) -> Elimination:
    """Removes all units of `size` adjacent inputs from `weight`, `[out, in]`, one after another.

    `second` is `E[h h^T]`, `[in, in]`. `at_once` units go a round, which costs little quality and
    saves most of the time.
    """
    remaining = weight.double().cpu()
    energy = torch.einsum("oi,ij,oj->", remaining, second, remaining)
    strength = ridge * second.diagonal().mean()
    if not energy > 0:  # nothing is ever written: all are alike
        units = torch.arange(len(second) // size)
        return Elimination(units, torch.zeros(len(units), dtype=torch.float64))
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(second + strength * torch.eye(len(second), dtype=torch.float64))
    )
    left = torch.arange(len(second) // size)
    gone: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    total = torch.zeros((), dtype=torch.float64)
    while len(left):
        costs = _costs(remaining, inverse, size)
        chosen = costs.argsort(stable=True)[:at_once]
        out, kept = _features(chosen, size, len(inverse))
        solved = torch.linalg.solve(
            inverse[out][:, out], torch.cat([inverse[out][:, kept], remaining[:, out].T], 1)
        )
        takeover, lost = solved[:, : len(kept)], solved[:, len(kept) :]
        cost = (remaining[:, out].T * lost).sum().clamp(min=0)
        # Within a round, the joint cost is shared out by what each would have cost alone.
        alone = costs[chosen].clamp(min=torch.finfo(torch.float64).tiny).cumsum(0)
        errors.append(total + cost * alone / alone[-1])
        total = total + cost
        remaining = remaining[:, kept] - remaining[:, out] @ takeover
        inverse = inverse[kept][:, kept] - inverse[kept][:, out] @ takeover
        gone.append(left[chosen])
        left = left[_others(chosen, len(left))]
    return Elimination(torch.cat(gone), torch.cat(errors) / energy)


def _costs(weight: torch.Tensor, inverse: torch.Tensor, size: int) -> torch.Tensor:
    """What each unit alone would cost, `[units]`."""
    units = len(inverse) // size
    blocks = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.T.reshape(units, size, -1)
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))


def _features(units: torch.Tensor, size: int, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input indices of some units, and all the others."""
    out = (units[:, None] * size + torch.arange(size)).flatten()
    return out, _others(out, total)


def _others(index: torch.Tensor, total: int) -> torch.Tensor:
    rest = torch.ones(total, dtype=torch.bool)
    rest[index] = False
    return rest.nonzero().flatten()
