"""How long the engine's steps take: four numbers for each variant, fitted to measured steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pruners.support.validation import EXACT, Finite

MeasuredSeconds = Mapping[str, float]
"""Median seconds by size: `ROWSxCACHED` for decode steps, the number of tokens for prompts."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds, with one entry for each variant, the base first.

    A decode step takes `max(stream) + sum(row) + sum(cached * cached tokens)` over its rows:
    variants are nested, so that the weights of the widest row are read once for all rows. A prompt
    takes `prompt` for each token.
    """

    stream: tuple[Finite, ...]
    row: tuple[Finite, ...]
    prompt: tuple[Finite, ...]
    cached: tuple[Finite, ...]
    __pydantic_config__ = EXACT

    def full_step(self, action: int, rows: int) -> float:
        """Return the seconds of a decode step of `rows` answers by one variant, without caches."""
        return self.stream[action] + rows * self.row[action]

    def work(self, action: int, prompt: int, output: int, rows: int, reading: float = 1.0) -> float:
        """Return the seconds that a request takes of a machine that always decodes `rows` at once.

        `prompt` and `output` are in tokens, `reading` is the time to read the prompt over that in
        full.
        """
        cached = (prompt + output / 2) * self.cached[action]
        step = self.full_step(action, rows) / rows + cached
        return reading * prompt * self.prompt[action] + output * step

    def scaled(self, factor: float) -> "Rates":
        """Return the rates of a machine that takes `factor` times as long."""
        parts = (self.stream, self.row, self.prompt, self.cached)
        return Rates(*(tuple(factor * value for value in part) for part in parts))


def fit_rates(decode: Sequence[MeasuredSeconds], prefill: Sequence[MeasuredSeconds]) -> Rates:
    """Fit rates to the median seconds of each variant, the base first.

    Least squares on relative errors, with coefficients of at least 0. Decode steps are weighted by
    their rows, since queues form where batches are full.
    """
    rates: list[tuple[float, float, float, float]] = []
    for steps, prompts in zip(decode, prefill, strict=True):
        sizes = [tuple(map(int, size.split("x"))) for size in steps]
        features = [(1, rows, rows * cached) for rows, cached in sizes]
        counts = [rows for rows, _ in sizes]
        stream, row, cached = _solve_non_negative(features, list(steps.values()), counts)
        lengths = [(int(tokens),) for tokens in prompts]
        (token,) = _solve_non_negative(lengths, list(prompts.values()), [1] * len(prompts))
        rates.append((stream, row, token, cached))
    return Rates(*map(tuple, zip(*rates, strict=True)))


def _solve_non_negative(
    features: Sequence[Sequence[float]], seconds: Sequence[float], weights: Sequence[float]
) -> list[float]:
    """Solve a non-negative least squares problem, `[sizes, features]` against `[sizes]`.

    The most negative coefficient is set to 0 until none is negative.
    """
    target = np.array(weights, float)
    table = np.array(features, float) * (target / np.array(seconds))[:, None]
    columns = list(range(table.shape[1]))
    while True:
        coefficients, *_ = np.linalg.lstsq(table[:, columns], target, rcond=None)
        if (coefficients >= 0).all() or len(columns) == 1:
            break
        columns.pop(int(coefficients.argmin()))
    solution = [0.0] * table.shape[1]
    for index, value in zip(columns, coefficients, strict=True):
        solution[index] = max(float(value), 0.0)
    return solution
