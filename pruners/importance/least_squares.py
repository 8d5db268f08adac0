"""Backward elimination of the units that the remaining ones can best replace."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.collectors import SecondMomentMatrix, down_projection, output_projection
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.base import ImportanceScores, stack_scores

_MAX_ROUNDS = 192
RIDGE = 1e-2
"""Added to the diagonal of `E[h h^T]`, as a share of its mean."""


@dataclass(frozen=True, slots=True)
class Elimination:
    """The order in which units are removed, and the error after each.

    `units` are int64 `[units]`, the first to be removed first. `error[i]`, fp64 `[units]`, is the
    squared output error with the first `i + 1` removed and the others refitted, as a share of the
    output's mean square; it never falls.
    """

    units: torch.Tensor
    error: torch.Tensor

    def scores(self) -> torch.Tensor:
        """Return the error at which each unit is removed, by unit, fp64 `[units]`."""
        scores = torch.empty_like(self.error)
        scores[self.units] = self.error
        return scores


class LeastSquares:
    """Scores the inputs of `down` and `o` by backward elimination (structured OBS).

    With `H = E[h h^T]`, removing unit `j` and refitting the other columns adds
    `W_j^T ([H^-1]_jj)^-1 W_j` to the squared output error (optimal brain surgeon, Hassibi and Stork
    1993). The unit with the least cost is removed, the others are refitted, and so on, as in OSSCAR
    (Meng et al. 2024, arXiv 2403.12983) and SlimGPT (Ling et al. 2024, arXiv 2412.18110). The order
    holds for every width. A unit's score is the relative output error at which it is removed, so
    scores of different layers can be compared. It suits variants with a refit or its low-rank form;
    for others, `ActivationNorm` may be better.
    """

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        """Return the scores of all units."""
        shape = located.shape
        group = shape.queries_per_group * shape.head_dim

        def make_collectors(_: int) -> tuple[SecondMomentMatrix, SecondMomentMatrix]:
            return (
                SecondMomentMatrix(shape.ffn, down_projection),
                SecondMomentMatrix(shape.heads * shape.head_dim, output_projection),
            )

        ffn, kv = [], []
        for index, (neurons, heads) in collect_by_layer(
            located, rows, make_collectors, progress=progress
        ):
            layer = located.layers[index]
            at_once = max(1, shape.ffn // _MAX_ROUNDS)
            ffn.append(eliminate(layer.mlp.down.weight, neurons.matrix, at_once=at_once).scores())
            kv.append(eliminate(layer.attention.o.weight, heads.matrix, size=group).scores())
        return stack_scores(ffn, kv)


@torch.no_grad()
def eliminate(
    weight: torch.Tensor,
    second_moments: torch.Tensor,
    size: int = 1,
    at_once: int = 1,
    ridge: float = RIDGE,
) -> Elimination:
    """Remove all units of `size` adjacent inputs from `weight` `[out, in]`, one after another.

    `second_moments` is `E[h h^T]`, fp64 `[in, in]`. `at_once` units are removed in each round: more
    than one saves most of the time and costs little quality.
    """
    remaining = weight.double().cpu()
    energy = torch.einsum("oi,ij,oj->", remaining, second_moments, remaining)
    strength = ridge * second_moments.diagonal().mean()
    if not energy > 0:  # the output is always zero, so all units are alike
        units = torch.arange(len(second_moments) // size)
        return Elimination(units, torch.zeros(len(units), dtype=torch.float64))
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(
            second_moments + strength * torch.eye(len(second_moments), dtype=torch.float64)
        )
    )
    remaining_units = torch.arange(len(second_moments) // size)
    removed: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    total = torch.zeros((), dtype=torch.float64)
    while len(remaining_units):
        costs = _costs(remaining, inverse, size)
        chosen = costs.argsort(stable=True)[:at_once]
        out, kept = _split_inputs(chosen, size, len(inverse))
        solved = torch.linalg.solve(
            inverse[out][:, out], torch.cat([inverse[out][:, kept], remaining[:, out].T], 1)
        )
        refit, lost = solved[:, : len(kept)], solved[:, len(kept) :]
        cost = (remaining[:, out].T * lost).sum().clamp(min=0)
        # The joint cost of a round is divided in proportion to the cost of each unit alone.
        alone = costs[chosen].clamp(min=torch.finfo(torch.float64).tiny).cumsum(0)
        errors.append(total + cost * alone / alone[-1])
        total = total + cost
        remaining = remaining[:, kept] - remaining[:, out] @ refit
        inverse = inverse[kept][:, kept] - inverse[kept][:, out] @ refit
        removed.append(remaining_units[chosen])
        remaining_units = remaining_units[_others(chosen, len(remaining_units))]
    return Elimination(torch.cat(removed), torch.cat(errors) / energy)


def _costs(weight: torch.Tensor, inverse: torch.Tensor, size: int) -> torch.Tensor:
    """Return the error that removing each unit alone would add, fp64 `[units]`."""
    units = len(inverse) // size
    blocks = inverse.view(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.T.reshape(units, size, -1)
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))


def _split_inputs(units: torch.Tensor, size: int, total: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the input indices of `units`, and all other indices below `total`."""
    out = (units[:, None] * size + torch.arange(size)).flatten()
    return out, _others(out, total)


def _others(index: torch.Tensor, total: int) -> torch.Tensor:
    rest = torch.ones(total, dtype=torch.bool)
    rest[index] = False
    return rest.nonzero().flatten()
