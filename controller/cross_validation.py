"""How good a sensitivity predictor is on prompts that it was not fitted to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from controller.analyzer import PromptFeatures
from controller.sensitivity import BOUND, FEATURES, solve, to_numbers

_FOLDS = 5
_RESAMPLES = 2000

_LENGTH = FEATURES.index("words")


def cross_validate(
    features: Sequence[PromptFeatures],
    losses: Mapping[str, Sequence[float]],
    prompt_loss: Sequence[float],
    seed: int = 0,
) -> dict[str, Any]:
    """Return figures for each variant and predictor, cross-validated over prompts.

    `losses` are by variant and `prompt_loss` is the base's own loss on the prompt, in nats per
    token, one for each prompt. Predictors: all features; these and `prompt_loss`; length only; and
    the complexity score (`rule`). Figures: `r2` (not for the score, which is no loss); Spearman's
    `rho`; and what happens if the half of the prompts with the least predicted loss is served by
    the variant. `gain` is the share of the oracle's advantage over a random half. `over_random` and
    `over_length` are how much less is lost than with a random half, and with the half that length
    picks, as 95 % bootstrap intervals in nats per token.
    """
    points = np.array([to_numbers(one) for one in features])
    targets = np.array(list(losses.values())).T
    predicted = {
        "all": _predictions(points, targets),
        "all+loss": _predictions(np.column_stack([points, prompt_loss]), targets),
        "length": _predictions(points[:, [_LENGTH]], targets),
    }
    rule = np.array([one.complexity for one in features])
    report: dict[str, Any] = {}
    random = np.random.default_rng(seed)
    draws = random.integers(len(features), size=(_RESAMPLES, len(features)))
    for number, (variant, values) in enumerate(losses.items()):
        true = np.array(values)
        predictions = {name: prediction[:, number] for name, prediction in predicted.items()} | {
            "rule": rule
        }
        report[variant] = {
            "mean": float(true.mean()),
            "deviation": float(true.std()),
            **{
                name: _figures(prediction, true, draws, predictions["length"])
                for name, prediction in predictions.items()
            },
        }
        del report[variant]["rule"]["r2"]
    return report


def _predictions(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return predictions `[prompts, variants]`, each from a fit to other prompts.

    `points` are `[prompts, features]`, `targets` `[prompts, variants]`.
    """
    folds = np.random.default_rng(1).permutation(len(points)) % _FOLDS
    predicted = np.zeros_like(targets)
    for fold in range(_FOLDS):
        left_out = folds == fold
        mean, scale, weights = solve(points[~left_out], targets[~left_out])
        level = targets[~left_out].mean(0)
        prediction = level + np.nan_to_num((points[left_out] - mean) / scale) @ weights
        predicted[left_out] = prediction.clip(level / BOUND, level * BOUND)
    return predicted


def _figures(
    prediction: np.ndarray, true: np.ndarray, draws: np.ndarray, length: np.ndarray
) -> dict[str, Any]:
    """Return the figures of one predictor. Resampled prompts are `draws` `[resamples, prompts]`."""
    residual = ((true - prediction) ** 2).sum()
    spread = ((true - true.mean()) ** 2).sum()
    chosen, best = _half(prediction, true), _half(true, true)
    mean = float(true.mean())
    half_losses = [_half(prediction[d], true[d]) for d in draws]
    return {
        "r2": float(1 - residual / max(spread, 1e-12)),
        "rho": _spearman(prediction, true),
        "gain": (mean - chosen) / max(mean - best, 1e-12),
        "over_random": _interval(
            [true[d].mean() - g for d, g in zip(draws, half_losses, strict=True)]
        ),
        "over_length": _interval(
            [_half(length[d], true[d]) - g for d, g in zip(draws, half_losses, strict=True)]
        ),
    }


def _half(prediction: np.ndarray, true: np.ndarray) -> float:
    """Return the mean true loss of the half with the least predicted loss. Both `[prompts]`."""
    return float(true[np.argsort(prediction, kind="stable")[: len(true) // 2]].mean())


def _interval(values: Sequence[float]) -> list[float]:
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation of two arrays `[prompts]`."""
    ranks = [np.argsort(np.argsort(v, kind="stable")) for v in (one, other)]
    if np.ptp(one) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
