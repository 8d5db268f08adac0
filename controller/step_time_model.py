"""How long a step of the engine takes: fitted to measured steps and corrected by every step."""

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np

from controller.engine_status import StepPart, StepRecord
from pruners.architecture import Shape
from pruners.variant import VariantSpec

StepCounts = tuple[float, float, float, float]
"""1, and in billions: weights that are streamed, weights times tokens that are multiplied, and
numbers that are read from KV caches."""
Coefficients = tuple[float, float, float, float]
"""Seconds for each of `StepCounts`."""
NO_RATES: Coefficients = (0.0, 0.0, 0.0, 0.0)
_SMOOTHING = 0.1
"""Weight of the newest step in the running means."""
_WINDOW, _REFIT_AFTER = 1024, 256
"""Steps that a fit looks back on, and after how many it is repeated."""
_MAX_DEVIATION = 5.0
"""A step counts as at most this many times its prediction, and at least one part of it."""


class _VariantSize(NamedTuple):
    """Of one variant: the weights that a row multiplies, and the numbers cached for a token."""

    spec: VariantSpec
    multiplied: int
    cached: int


class StepCounter:
    """Counts what a step streams, multiplies and reads. Any thread may call it.

    Its caches hold values that never change and are added with one assignment each.
    """

    def __init__(self, shape: Shape, own_weights: Mapping[str, int]) -> None:
        """`own_weights` are the numbers that a variant reads beside the shared weights, by name.

        For what shallow tokens run through (`shallow_part`), the maps are among them.
        """
        self._shape = shape
        self._own_weights = own_weights
        # By names, which hash quickly.
        self._sizes: dict[str, _VariantSize] = {}
        # There is no small bound on the combinations of variants in a step.
        self._streamed = lru_cache(maxsize=4096)(self._union)

    def add(self, own_weights: Mapping[str, int]) -> None:
        """Take the numbers of further variants, of which nothing was counted yet."""
        self._own_weights = {**self._own_weights, **own_weights}

    def count(self, rows: Iterable[StepPart], sampled: int) -> StepCounts:
        """Return the counts of a step over `rows` that samples `sampled` tokens."""
        head = self._shape.hidden * self._shape.vocab
        multiplied, cached, present = sampled * head, 0, set()
        sizes = self._sizes
        for variant, tokens, attended in rows:
            if tokens:
                size = sizes.get(variant.name) or self.size(variant)
                multiplied += tokens * size.multiplied
                cached += attended * size.cached
                present.add(variant.name)
        streamed = self._streamed(frozenset(present)) + (head if sampled else 0)
        return 1.0, streamed / 1e9, multiplied / 1e9, cached / 1e9

    def size(self, variant: VariantSpec) -> _VariantSize:
        """Return a variant's numbers, which are computed once."""
        size = self._sizes.get(variant.name)
        if size is None:
            own = self._own_weights.get(variant.name, 0)
            multiplied = variant.body_parameters(self._shape) + own
            size = _VariantSize(variant, multiplied, variant.kv_elements(self._shape))
            self._sizes[variant.name] = size
        return size

    def _union(self, names: frozenset[str]) -> int:
        """Return the weights that a step streams: all that any of its variants has."""
        variants, layers = [self._sizes[name].spec for name in names], range(self._shape.layers)
        widest = VariantSpec(
            "union",
            tuple(max((v.kv_groups[i] for v in variants), default=0) for i in layers),
            tuple(max((v.ffn[i] for v in variants), default=0) for i in layers),
        )
        own = sum(self._own_weights.get(name, 0) for name in names)
        return widest.body_parameters(self._shape) + own


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Predictions of step times at one moment. Immutable, so that a decision is consistent."""

    counter: StepCounter
    coefficients: Coefficients
    correction: float

    def seconds(self, rows: Iterable[StepPart], sampled: int) -> float:
        """Return the predicted seconds of a step over `rows` that samples `sampled` tokens."""
        return self.correction * _seconds(self.coefficients, self.counter.count(rows, sampled))

    def per_cached(self, variant: VariantSpec) -> float:
        """Return the predicted seconds of a step for each cached token of a row of the variant."""
        return self.correction * self.coefficients[3] * self.counter.size(variant).cached / 1e9


class StepTimeModel:
    """Predicts the seconds of a step: a fixed part, and rates for what it streams, multiplies and
    reads.

    A mixed batch streams the union of its variants' weights once, and multiplies what each row
    asks for; a narrow variant caches fewer keys and values. The rates are fitted to measurements
    at start-up and to recent steps. In between, one correction factor follows the host: if another
    process takes the processor, all predictions grow within a few steps.

    Threads: any thread calls `fit`, the engine's thread `observe`; both hold a lock. Any thread
    calls the rest. What it reads is `now`, an immutable value that writers replace as a
    whole. Whoever makes several predictions that belong together takes `now` once.
    """

    def __init__(
        self,
        shape: Shape,
        own_weights: Mapping[str, int] | None = None,
        declared: Coefficients = NO_RATES,
    ) -> None:
        """`own_weights` are the numbers that a variant reads beside the shared weights, by name.

        `declared` rates hold until the first `fit`.
        """
        self._counter = StepCounter(shape, own_weights or {})
        self._lock = threading.Lock()  # of all below; `now` is read without it
        self._measured: list[tuple[StepCounts, float]] = []  # at start-up
        self._idle = declared  # fitted to these alone
        self._recent: deque[tuple[StepCounts, float]] = deque(maxlen=_WINDOW)
        self._since_fit = 0  # steps
        self._mean_seconds = self._mean_predicted = 0.0  # running means over steps
        self.now = self._predictor(self._idle, 1.0)

    def fit(self, records: Sequence[StepRecord]) -> None:
        """Fit the rates to measured steps: least squares on relative errors with rates >= 0."""
        with self._lock:
            self._measured = [(self._counter.count(r.rows, r.sampled), r.seconds) for r in records]
            self._recent.clear()
            self._idle = _fit(self._measured)
            self._mean_seconds = float(np.mean([r.seconds for r in records]))
            self._mean_predicted = self._mean_seconds
            self.now = self._predictor(self._idle, 1.0)

    def add_variants(self, own_weights: Mapping[str, int]) -> None:
        """Take the numbers that further variants read beside the shared weights, by name."""
        self._counter.add(own_weights)

    def observe(self, record: StepRecord) -> None:
        """Move the correction towards a step's duration, and refit the rates from time to time.

        Without any rates nothing is learned.
        """
        with self._lock:
            if not any(self._idle):
                return
            counts = self._counter.count(record.rows, record.sampled)
            coefficients = self.now.coefficients
            predicted = _seconds(coefficients, counts)
            # One stalled step says little; the bound keeps it from ruling the next fifty.
            low, high = predicted / _MAX_DEVIATION, predicted * _MAX_DEVIATION
            seconds = min(max(record.seconds, low), high)
            # A ratio of means, not a mean of ratios: a delay of a millisecond in a short step says
            # nothing about long steps, and it is long steps that make a queue.
            self._mean_seconds += _SMOOTHING * (seconds - self._mean_seconds)
            self._mean_predicted += _SMOOTHING * (predicted - self._mean_predicted)
            self._recent.append((counts, seconds))
            self._since_fit += 1
            if self._since_fit == _REFIT_AFTER:
                coefficients = self._refit(coefficients)
            correction = self._mean_seconds / self._mean_predicted
            self.now = self._predictor(coefficients, correction)

    def _refit(self, before: Coefficients) -> Coefficients:
        """Return new rates. The corrected prediction for the mean of recent steps stays."""
        steps = [counts for counts, _ in self._recent]
        # The first measurements are of an idle host; they are slowed down to the present one.
        slowdown = sum(s for _, s in self._recent) / sum(_seconds(self._idle, c) for c in steps)
        measured = [(counts, slowdown * seconds) for counts, seconds in self._measured]
        after = _fit([*measured, *self._recent])
        ratio = sum(_seconds(after, c) for c in steps) / sum(_seconds(before, c) for c in steps)
        self._mean_predicted *= ratio
        self._since_fit = 0
        return after

    @property
    def correction(self) -> float:
        """What recent steps took over what the rates predict."""
        return self.now.correction

    def seconds(self, rows: Iterable[StepPart], sampled: int) -> float:
        """Return the predicted seconds of a step over `rows` that samples `sampled` tokens."""
        return self.now.seconds(rows, sampled)

    def per_cached(self, variant: VariantSpec) -> float:
        """Return the predicted seconds of a step for each cached token of a row of the variant."""
        return self.now.per_cached(variant)

    def _predictor(self, coefficients: Coefficients, correction: float) -> StepTimes:
        return StepTimes(self._counter, coefficients, correction)


def _seconds(coefficients: Coefficients, counts: StepCounts) -> float:
    fixed, streamed, multiplied, cached = coefficients
    return fixed + counts[1] * streamed + counts[2] * multiplied + counts[3] * cached


def _fit(steps: Sequence[tuple[StepCounts, float]]) -> Coefficients:
    """Return the non-negative coefficients of least squared relative error.

    All 15 subsets of coefficients are tried, the others being 0.
    """
    seconds = np.array([s for _, s in steps])
    table = np.array([counts for counts, _ in steps]) / seconds[:, None]  # [steps, 4]
    squares, sums = table.T @ table, table.sum(0)
    best, min_error = np.zeros(len(sums)), np.inf
    for size in range(1, len(sums) + 1):
        for subset in map(list, combinations(range(len(sums)), size)):
            gram = squares[np.ix_(subset, subset)]
            part, *_ = np.linalg.lstsq(gram, sums[subset], rcond=None)
            # The sum of squared errors without its constant term, the number of steps.
            error = float(part @ gram @ part - 2 * part @ sums[subset])
            if (part >= 0).all() and error < min_error:
                best, min_error = np.zeros(len(sums)), error
                best[subset] = part
    fixed, streamed, multiplied, cached = map(float, best)
    return fixed, streamed, multiplied, cached
