"""What a prompt's text says of the loss that each variant will have on its answer.

Ridge regression of the loss (nats per token against the base) on standardised features, one for
each variant. Text explains little of it, so predictions stay near the variant's mean: the report
that comes with the predictor says how near, beside constant, length and complexity.
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
"""Predictions stay within this factor of the mean."""
_RIDGES = (1.0, 10.0, 100.0, 1000.0)


class SensitivityError(UserError):
    """A predictor that cannot be read or belongs to another model. One clear line."""


def vector(features: PromptFeatures) -> list[float]:
    """The features as numbers; what the backend did not find out is NaN."""
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
    """Predicts losses. `mean` and `scale` are of the features, `weights` by variant.

    `level` is each variant's mean loss on the prompts that it was fitted to.
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
        """By variant, the loss expected on this prompt over the variant's mean loss."""
        point = (np.array(vector(features)) - self.mean) / self.scale
        point = np.nan_to_num(point)  # a feature that is missing says nothing
        ratios = 1.0 + point @ self._slopes
        return dict(zip(self.weights, ratios.clip(1 / BOUND, BOUND).tolist(), strict=True))

    @cached_property
    def _slopes(self) -> np.ndarray:
        """`[features, variants]`: weights over the variant's mean loss."""
        weights = np.array(list(self.weights.values()))
        return (weights / np.array([self.level[name] for name in self.weights])[:, None]).T

    def save(self, folder: Path) -> Path:
        """Writes `sensitivity.json` under a temporary name and renames it."""
        value = {"schema": SCHEMA, "features": FEATURES, **asdict(self)}
        return write_json(folder / FILE, value)


def load_sensitivity(folder: Path, fingerprint: str) -> Sensitivity | None:
    """Reads the predictor in an artefact's folder, if there is one.

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
        found = validate(Sensitivity, value)
        sizes = {len(found.mean), len(found.scale), *map(len, found.weights.values())}
        if sizes != {len(FEATURES)} or found.weights.keys() != found.level.keys():
            raise ValueError("its numbers do not fit together")
    except (SensitivityError, ReadError):
        raise
    except ValueError as error:
        raise SensitivityError(f"{path} is damaged: {error}") from error
    if found.fingerprint != fingerprint:
        raise SensitivityError(f"{path} was made for another model ({found.fingerprint})")
    return found


def fit(
    features: Sequence[PromptFeatures],
    losses: Mapping[str, Sequence[float]],
    fingerprint: str,
    backend: str,
) -> Sensitivity:
    """Fits one ridge a variant; its strength is chosen by five folds, the same for all variants."""
    points = np.array([vector(one) for one in features])
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
    """Mean and scale of `[prompts, features]`, and the weights `[features, variants]` of what
    `[prompts, variants]` differs from its mean by. NaN is a feature that is not known."""
    mean, scale = _spread(points)
    points = np.nan_to_num((points - mean) / scale)
    strength = min(_RIDGES, key=lambda ridge: _folded_error(points, targets, ridge))
    return mean, scale, _ridge(points, targets - targets.mean(0), strength)


def _spread(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature where it is known; 0 and 1 where it never is."""
    known = ~np.isnan(points)
    count = known.sum(0).clip(1)
    mean = np.nansum(points, axis=0) / count
    scale = np.sqrt((np.where(known, points - mean, 0.0) ** 2).sum(0) / count)
    scale[scale < 1e-9] = 1.0
    return mean, scale


def _ridge(points: np.ndarray, targets: np.ndarray, strength: float) -> np.ndarray:
    gram = points.T @ points + strength * np.eye(points.shape[1])
    found: np.ndarray = np.linalg.solve(gram, points.T @ targets)
    return found


def _folded_error(points: np.ndarray, targets: np.ndarray, strength: float) -> float:
    """Squared error on folds that were left out, each variant's over its variance."""
    total = 0.0
    folds = np.arange(len(points)) % 5
    for fold in range(5):
        held = folds == fold
        mean = targets[~held].mean(0)
        weights = _ridge(points[~held], targets[~held] - mean, strength)
        error = targets[held] - mean - points[held] @ weights
        total += float((error**2 / targets.var(0).clip(1e-12)).sum())
    return total
