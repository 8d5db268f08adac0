"""Policies side by side: in time, and quality over that of the base that refuses early."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Cell = tuple[float, str]
"""The load that is wanted, over the base's capacity, and the policy."""
REFUSING = "refusing:base"
"""The policy that others are compared with."""
_BLOCK = 20
"""Requests that are resampled together: those behind one another share a queue."""
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class RunResult:
    """What became of each request of a run, in order of arrival.

    `met` is 1.0 for those in time. `quality` is exp(-KL) of those, and 0 for the lost ones.
    """

    met: Sequence[float]
    quality: Sequence[float]


def resampled_medians(runs: Sequence[Sequence[float]], seed: int) -> np.ndarray:
    """Return `[resamples]`: medians over runs of their means, runs and blocks in them resampled.

    Blocks are of consecutive requests and may overlap (Kuensch 1989, doi 10.1214/aos/1176347265).
    """
    random = np.random.default_rng(seed)
    means = np.stack([_resampled_means(np.array(run, float), random) for run in runs])
    chosen = random.integers(len(runs), size=(len(runs), _RESAMPLES))
    medians: np.ndarray = np.median(np.take_along_axis(means, chosen, axis=0), axis=0)
    return medians


def _resampled_means(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the means of block resamples of a run, `[resamples]`."""
    block = min(_BLOCK, len(values))
    sums = np.concatenate([[0.0], values.cumsum()])
    of_block = (sums[block:] - sums[:-block]) / block  # the mean of each block
    count = -(-len(values) // block)
    means: np.ndarray = of_block[random.integers(len(of_block), size=(_RESAMPLES, count))].mean(1)
    return means


def compare(runs: Mapping[Cell, Sequence[RunResult]]) -> list[dict[str, Any]]:
    """Return a row for each load and policy.

    `attained`, `quality` and `over_refusing` are (median over repeats, lower and upper end of the
    95 % interval). `over_refusing` is the quality over that of the base that refuses early at the
    same load; None where that was not run.
    """
    rows = []
    for load, policy in sorted(runs):
        row: dict[str, Any] = {"load": load, "policy": policy}
        for name in ("attained", "quality"):
            values = _values(runs[load, policy], name)
            row[name] = _with_interval(_median(values), resampled_medians(values, 0))
        refusing = _values(runs.get((load, REFUSING), ()), "quality")
        row["over_refusing"] = None
        if refusing and _median(refusing) > 0 and policy != REFUSING:
            values = _values(runs[load, policy], "quality")
            below = np.maximum(resampled_medians(refusing, 1), 1e-9)
            ratio = _median(values) / _median(refusing)
            row["over_refusing"] = _with_interval(ratio, resampled_medians(values, 0) / below)
        rows.append(row)
    return rows


def print_comparison(console: Console, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Print the rows of `compare`."""
    shown = Table(title=f"{title}; medians over repeats and 95 % intervals")
    for column in ("load", "policy", "in time", "quality, lost = 0", "over refusing early"):
        shown.add_column(column)
    for row in rows:
        cells = [_cell(row[name]) for name in ("attained", "quality", "over_refusing")]
        shown.add_row(f"{row['load']:g}", row["policy"], *cells)
    console.print(shown)


def _cell(value: tuple[float, float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"


def _values(runs: Sequence[RunResult], name: str) -> list[Sequence[float]]:
    return [run.met if name == "attained" else run.quality for run in runs]


def _median(runs: Sequence[Sequence[float]]) -> float:
    return median(sum(run) / len(run) for run in runs)


def _with_interval(value: float, resampled: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return value, float(low), float(high)
