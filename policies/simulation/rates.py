"""How long the engine's steps take, by variant: four numbers each, fitted to measured ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pruners.support.validation import EXACT, Finite

Seconds = Mapping[str, float]
"""Medians by size: `ROWSxCACHED` for decode steps, tokens for prompts."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds, one entry a variant, the base first.

    A decode step takes `stream` of its widest row (variants are nested, so weights are read once
    for all rows) plus, of each row, `row` and `cached` for each token that it has cached; a prompt
    takes `prompt` a token.
    """

    stream: tuple[Finite, ...]
    row: tuple[Finite, ...]
    prompt: tuple[Finite, ...]
    cached: tuple[Finite, ...]
    __pydantic_config__ = EXACT

    def full_step(self, action: int, rows: int) -> float:
        """A decode step of `rows` answers by one variant, cache aside."""
        return self.stream[action] + rows * self.row[action]

    def work(self, action: int, prompt: int, output: int, rows: int) -> float:
        """What one request takes of a machine that always decodes `rows` at once."""
        cached = (prompt + output / 2) * self.cached[action]
        step = self.full_step(action, rows) / rows + cached
        return prompt * self.prompt[action] + output * step

    def scaled(self, factor: float) -> "Rates":
        """The same on a machine that takes `factor` times as long."""
        parts = (self.stream, self.row, self.prompt, self.cached)
        return Rates(*(tuple(factor * value for value in part) for part in parts))


def fit_rates(decode: Sequence[Seconds], prefill: Sequence[Seconds]) -> Rates:
    """From medians of each variant, the base first; least squares on relative errors.

    A decode step counts by its rows: full batches are what queues are made of.
    """
    found: list[tuple[float, float, float, float]] = []
    for steps, prompts in zip(decode, prefill, strict=True):
        sizes = [tuple(map(int, size.split("x"))) for size in steps]
        features = [(1, rows, rows * cached) for rows, cached in sizes]
        counts = [rows for rows, _ in sizes]
        stream, row, cached = _positive(features, list(steps.values()), counts)
        lengths = [(int(tokens),) for tokens in prompts]
        (token,) = _positive(lengths, list(prompts.values()), [1] * len(prompts))
        found.append((stream, row, token, cached))
    return Rates(*map(tuple, zip(*found, strict=True)))


def _positive(
    features: Sequence[Sequence[float]], seconds: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """Non-negative least squares by leaving out what would be negative."""
    target = np.array(weights, float)
    table = np.array(features, float) * (target / np.array(seconds))[:, None]
    kept = list(range(table.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(table[:, kept], target, rcond=None)
        if (found >= 0).all() or len(kept) == 1:
            break
        kept.pop(int(found.argmin()))
    solution = [0.0] * table.shape[1]
    for index, value in zip(kept, found, strict=True):
        solution[index] = max(float(value), 0.0)
    return solution
