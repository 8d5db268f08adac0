"""How much a sensitivity predictor is worth, on prompts that it was not fitted to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from controller.analyzer import PromptFeatures
from controller.sensitivity import BOUND, FEATURES, solve, vector

_FOLDS = 5
_RESAMPLES = 2000

_LENGTH = FEATURES.index("words")


def cross_validate(
    features: Sequence[PromptFeatures],
    losses: Mapping[str, Sequence[float]],
    prompt_loss: Sequence[float],
    seed: int = 0,
) -> dict[str, Any]:
    """For each variant and predictor, cross-validated over prompts.

    `r2` and Spearman's `rho`; `gain` is the share of the oracle's advantage over chance that is won
    when the half of the prompts with the least predicted loss is cut, and `over_random` and
    `over_length` are how much less is lost than by a random half, or by the half that length alone
    picks, in nats per token with 95 % bootstrap intervals. Predictors: all features, these and
    `prompt_loss`, the base's own on the prompt (which it has once it has read it), length only, and
    the complexity score as a rule ("hard prompts lose more"), which has no `r2`: it is no loss.
    """
    seen = np.array([vector(one) for one in features])
    targets = np.array(list(losses.values())).T
    predicted = {
        "all": _predictions(seen, targets),
        "all+loss": _predictions(np.column_stack([seen, prompt_loss]), targets),
        "length": _predictions(seen[:, [_LENGTH]], targets),
    }
    rule = np.array([one.complexity for one in features])
    found: dict[str, Any] = {}
    chance = np.random.default_rng(seed)
    draws = chance.integers(len(features), size=(_RESAMPLES, len(features)))
    for number, (variant, values) in enumerate(losses.items()):
        true = np.array(values)
        guesses = {name: guess[:, number] for name, guess in predicted.items()} | {"rule": rule}
        found[variant] = {
            "mean": float(true.mean()),
            "deviation": float(true.std()),
            **{
                name: _one(guess, true, draws, guesses["length"]) for name, guess in guesses.items()
            },
        }
        del found[variant]["rule"]["r2"]
    return found


def _predictions(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """`[prompts, variants]`, each prompt's from a fit that did not see it."""
    folds = np.random.default_rng(1).permutation(len(points)) % _FOLDS
    found = np.zeros_like(targets)
    for fold in range(_FOLDS):
        held = folds == fold
        mean, scale, weights = solve(points[~held], targets[~held])
        level = targets[~held].mean(0)
        guess = level + np.nan_to_num((points[held] - mean) / scale) @ weights
        found[held] = guess.clip(level / BOUND, level * BOUND)
    return found


def _one(
    guess: np.ndarray, true: np.ndarray, draws: np.ndarray, length: np.ndarray
) -> dict[str, Any]:
    residual = ((true - guess) ** 2).sum()
    spread = ((true - true.mean()) ** 2).sum()
    chosen, best = _half(guess, true), _half(true, true)
    mean = float(true.mean())
    gains = [_half(guess[d], true[d]) for d in draws]
    return {
        "r2": float(1 - residual / max(spread, 1e-12)),
        "rho": _spearman(guess, true),
        "gain": (mean - chosen) / max(mean - best, 1e-12),
        "over_random": _interval([true[d].mean() - g for d, g in zip(draws, gains, strict=True)]),
        "over_length": _interval(
            [_half(length[d], true[d]) - g for d, g in zip(draws, gains, strict=True)]
        ),
    }


def _half(guess: np.ndarray, true: np.ndarray) -> float:
    """Mean loss of the half with the least predicted loss."""
    return float(true[np.argsort(guess, kind="stable")[: len(true) // 2]].mean())


def _interval(values: Sequence[float]) -> list[float]:
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(v, kind="stable")) for v in (one, other)]
    if np.ptp(one) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
