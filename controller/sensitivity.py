"""Predicts from a prompt's text the loss of each variant on its answer.

One ridge regression for each variant, of the loss (nats per token against the base) on standardised
features. Text explains little of the loss, so that predictions stay near the variant's mean. The
predictor's report says how much it explains, beside length and complexity alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from controller.analyzer import PromptFeatures
from pruners.data.readers import ReadError, read_json
from pruners.support.errors import UserError
from pruners.support.files import write_json
from pruners.support.validation import EXACT, Finite, Positive, validate

SCHEMA = 1
FILE = "sensitivity.json"
FEATURES = (
    "words", "sentences", "questions", "numbers", "code_marks", "step_cues", "reasoning_cues",
    "instructions", "distinct_ratio", "mean_word", "english", "other_language", "verbs",
    "noun_chunks", "dependency_span",
)  # fmt: skip
_COUNTS = {"words", "sentences", "numbers", "code_marks", "step_cues", "verbs", "noun_chunks"}
BOUND = 3.0
"""Predictions stay within this factor of the variant's mean loss."""
_RIDGES = (1.0, 10.0, 100.0, 1000.0)
"""Strengths of the penalty on squared weights that are tried."""


class SensitivityError(UserError):
    """A predictor that cannot be read or belongs to another model. The message is one line."""


def to_numbers(features: PromptFeatures) -> list[float]:
    """Return the values of `FEATURES`. What the analyzer's backend does not find out is NaN."""
    values = {
        **asdict(features),
        "english": float(features.language == "en"),
        "other_language": float(features.language not in ("", "en")),
    }
    return [_number(name, values[name]) for name in FEATURES]


def _number(name: str, value: float | None) -> float:
    if value is None:
        return math.nan
    return math.log1p(value) if name in _COUNTS else float(value)


@dataclass(frozen=True)
class Sensitivity:
    """A fitted predictor.

    `fingerprint` is that of the model, `backend` the analyzer's. `mean` and `scale` `[features]`
    standardise the features. By variant, `level` is the mean loss of the prompts it was fitted to,
    and `weights` `[features]` are its regression weights, both in nats per token.
    """

    fingerprint: str
    backend: str
    mean: tuple[Finite, ...]
    scale: tuple[Positive, ...]
    level: dict[str, Positive]
    weights: dict[str, tuple[Finite, ...]]
    report: dict[str, Any] = field(default_factory=dict)
    __pydantic_config__ = EXACT

    def relative(self, features: PromptFeatures) -> dict[str, float]:
        """Return by variant the predicted loss on this prompt over the variant's mean loss."""
        point = (np.array(to_numbers(features)) - self.mean) / self.scale
        point = np.nan_to_num(point)  # a missing feature counts as the mean
        ratios = 1.0 + point @ self._slopes
        return dict(zip(self.weights, ratios.clip(1 / BOUND, BOUND).tolist(), strict=True))

    @cached_property
    def _slopes(self) -> np.ndarray:
        """Weights over the variant's mean loss, `[features, variants]`."""
        weights = np.array(list(self.weights.values()))
        return (weights / np.array([self.level[name] for name in self.weights])[:, None]).T

    def save(self, folder: Path) -> Path:
        """Write `sensitivity.json` under a temporary name and rename it; return its path."""
        value = {"schema": SCHEMA, "features": FEATURES, **asdict(self)}
        return write_json(folder / FILE, value)


def load_sensitivity(folder: Path, fingerprint: str) -> Sensitivity | None:
    """Return the predictor in an artefact's folder, or None if there is none.

    `fingerprint` is that of the model.
    Raises `SensitivityError` or `ReadError`.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        value = read_json(path)
        if not isinstance(value, dict) or not {"schema", "features"} <= value.keys():
            raise ValueError("it has no schema or features")
        if value.pop("schema") != SCHEMA or value.pop("features") != list(FEATURES):
            raise SensitivityError(f"{path} is of another version; make it again")
        predictor = validate(Sensitivity, value)
        sizes = {len(predictor.mean), len(predictor.scale), *map(len, predictor.weights.values())}
        if sizes != {len(FEATURES)} or predictor.weights.keys() != predictor.level.keys():
            raise ValueError("its numbers do not fit together")
    except (SensitivityError, ReadError):
        raise
    except ValueError as error:
        raise SensitivityError(f"{path} is damaged: {error}") from error
    if predictor.fingerprint != fingerprint:
        raise SensitivityError(f"{path} was made for another model ({predictor.fingerprint})")
    return predictor


def fit(
    features: Sequence[PromptFeatures],
    losses: Mapping[str, Sequence[float]],
    fingerprint: str,
    backend: str,
) -> Sensitivity:
    """Fit a predictor to losses by variant, in nats per token, one for each prompt.

    The strength of the penalty is chosen by five folds, the same for all variants.
    """
    points = np.array([to_numbers(one) for one in features])
    mean, scale, weights = solve(points, np.array(list(losses.values())).T)
    return Sensitivity(
        fingerprint=fingerprint,
        backend=backend,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        level={name: float(np.mean(values)) for name, values in losses.items()},
        weights={
            name: tuple(column.tolist()) for name, column in zip(losses, weights.T, strict=True)
        },
    )


def solve(points: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a ridge regression of targets `[prompts, variants]` on points `[prompts, features]`.

    NaN marks an unknown feature. Return the features' mean and scale, `[features]`, and the weights
    `[features, variants]` of the targets' differences from their means.
    """
    mean, scale = _spread(points)
    points = np.nan_to_num((points - mean) / scale)
    strength = min(_RIDGES, key=lambda ridge: _folded_error(points, targets, ridge))
    return mean, scale, _ridge(points, targets - targets.mean(0), strength)


def _spread(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature of `[prompts, features]`, `[features]`.

    Unknown values (NaN) are left out. A feature that is never known has 0 and 1.
    """
    known = ~np.isnan(points)
    count = known.sum(0).clip(1)
    mean = np.nansum(points, axis=0) / count
    scale = np.sqrt((np.where(known, points - mean, 0.0) ** 2).sum(0) / count)
    scale[scale < 1e-9] = 1.0
    return mean, scale


def _ridge(points: np.ndarray, targets: np.ndarray, strength: float) -> np.ndarray:
    """Return the weights `[features, variants]` of a ridge regression without a constant."""
    gram = points.T @ points + strength * np.eye(points.shape[1])
    weights: np.ndarray = np.linalg.solve(gram, points.T @ targets)
    return weights


def _folded_error(points: np.ndarray, targets: np.ndarray, strength: float) -> float:
    """Return the squared error on left-out folds, each variant's divided by its variance."""
    total = 0.0
    folds = np.arange(len(points)) % 5
    for fold in range(5):
        left_out = folds == fold
        mean = targets[~left_out].mean(0)
        weights = _ridge(points[~left_out], targets[~left_out] - mean, strength)
        error = targets[left_out] - mean - points[left_out] @ weights
        total += float((error**2 / targets.var(0).clip(1e-12)).sum())
    return total
