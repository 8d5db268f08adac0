"""How long a step takes: fitted to measured steps, again and again, and corrected by every one."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from controller.engine_status import StepRecord
from pruners.architecture import Shape
from pruners.variant import VariantSpec

Rows = Iterable[tuple[VariantSpec, int, int]]
"""By variant, tokens to process and cached tokens that these read."""
Features = tuple[float, float, float, float]
"""1, and in billions of numbers what is streamed, multiplied and read of caches."""
Rates = tuple[float, float, float, float]
"""Seconds for each of these."""
_SMOOTHING = 0.1  # weight of the newest step in the running correction
_RECENT, _AGAIN = 1024, 256  # steps that a fit looks back on, and after how many it is done again


class StepTimeModel:
    """Seconds of a step: a fixed part, and rates for what it streams, multiplies and reads.

    A mixed batch streams the union of its variants' weights once and multiplies what each row asks
    for; a narrow variant caches fewer keys and values. The rates are fitted to the first
    measurements and to recent steps. The correction follows the host: when something else takes the
    processor, every prediction grows within a few steps.
    """

    def __init__(self, shape: Shape, own: Mapping[str, int] | None = None) -> None:
        """`own` says how many numbers a variant reads beside the shared weights, by its name."""
        self._shape = shape
        self._own = own or {}
        # By names, which hash quickly. Which variants may meet in a step has no small bound.
        self._seen: dict[str, VariantSpec] = {}
        self._multiplied: dict[str, int] = {}
        self._cached: dict[str, int] = {}
        self._streamed = lru_cache(maxsize=4096)(self._union)
        self._rates: Rates = (0.0, 0.0, 0.0, 0.0)
        self._first: list[tuple[Features, float]] = []
        self._idle = self._rates  # of an idle host, by the first steps alone
        self._recent: deque[tuple[Features, float]] = deque(maxlen=_RECENT)
        self._since = 0  # steps since the last fit
        self.correction = 1.0
        self._took = self._predicted = 0.0  # running means of steps, in seconds

    def fit(self, records: Sequence[StepRecord]) -> None:
        """Takes first measurements; least squares on relative errors with rates >= 0."""
        self._first = [(self._features(r.rows, r.sampled), r.seconds) for r in records]
        self._recent.clear()
        self._rates = self._idle = _fitted(self._first)
        self.correction = 1.0
        self._took = self._predicted = float(np.mean([r.seconds for r in records]))

    def observe(self, record: StepRecord) -> None:
        """Moves the correction towards what this step took, and from time to time the rates.

        Before the first measurements nothing is learned.
        """
        if not self._first:
            return
        features = self._features(record.rows, record.sampled)
        predicted = self._raw(features)
        # One stalled step says little; the bound keeps it from ruling the next fifty.
        seconds = min(max(record.seconds, 0.2 * predicted), 5.0 * predicted)
        # Sums, not the mean of ratios: a short step that a busy host delays by a millisecond says
        # nothing of long ones, and it is long ones that make a queue.
        self._took += _SMOOTHING * (seconds - self._took)
        self._predicted += _SMOOTHING * (predicted - self._predicted)
        self.correction = self._took / self._predicted
        self._recent.append((features, seconds))
        self._since += 1
        if self._since == _AGAIN:
            self._fit_again()

    def _fit_again(self) -> None:
        """The correction stays what it is for the mean of recent steps."""
        steps = [features for features, _ in self._recent]
        # The first measurements are of an idle host; what is slower now is so for all of them.
        slower = sum(s for _, s in self._recent) / sum(_at(self._idle, f) for f in steps)
        before = self._rates
        self._rates = _fitted([*((f, slower * s) for f, s in self._first), *self._recent])
        self._predicted *= sum(map(self._raw, steps)) / sum(_at(before, f) for f in steps)
        self.correction = self._took / self._predicted
        self._since = 0

    def seconds(self, rows: Rows, sampled: int) -> float:
        """Predicted seconds of a step over `rows`, after which `sampled` tokens are chosen."""
        return self.correction * self._raw(self._features(rows, sampled))

    def per_cached(self, variant: VariantSpec) -> float:
        """Predicted seconds of a step for each cached token that a row of the variant reads."""
        self._parameters(variant)
        return self.correction * self._rates[3] * self._cached[variant.name] / 1e9

    def _raw(self, features: Features) -> float:
        return _at(self._rates, features)

    def _features(self, rows: Rows, sampled: int) -> Features:
        head = self._shape.hidden * self._shape.vocab
        worked, cached, present = sampled * head, 0, set()
        for variant, tokens, held in rows:
            if tokens:
                worked += tokens * self._parameters(variant)
                cached += held * self._cached[variant.name]
                present.add(variant.name)
        streamed = self._streamed(frozenset(present)) + (head if sampled else 0)
        return 1.0, streamed / 1e9, worked / 1e9, cached / 1e9

    def _parameters(self, variant: VariantSpec) -> int:
        """What one row multiplies."""
        found = self._multiplied.get(variant.name)
        if found is None:
            found = variant.body_parameters(self._shape) + self._own.get(variant.name, 0)
            self._seen[variant.name], self._multiplied[variant.name] = variant, found
            self._cached[variant.name] = variant.kv_elements(self._shape)
        return found

    def _union(self, names: frozenset[str]) -> int:
        """What a step reads for these variants: all that any of them has, and what each owns."""
        variants, layers = [self._seen[name] for name in names], range(self._shape.layers)
        widest = VariantSpec(
            "union",
            tuple(max((v.kv_groups[i] for v in variants), default=0) for i in layers),
            tuple(max((v.ffn[i] for v in variants), default=0) for i in layers),
        )
        return widest.body_parameters(self._shape) + sum(self._own.get(name, 0) for name in names)


def _at(rates: Rates, features: Features) -> float:
    fixed, streamed, worked, cached = rates
    return fixed + features[1] * streamed + features[2] * worked + features[3] * cached


def _fitted(steps: Sequence[tuple[Features, float]]) -> Rates:
    """Rates of the least relative errors that are not negative, by trying every subset of them."""
    seconds = np.array([s for _, s in steps])
    table = np.array([f for f, _ in steps]) / seconds[:, None]
    squares, sums = table.T @ table, table.sum(0)
    best, least = np.zeros(len(sums)), np.inf
    for size in range(1, len(sums) + 1):
        for subset in map(list, combinations(range(len(sums)), size)):
            part, *_ = np.linalg.lstsq(squares[np.ix_(subset, subset)], sums[subset], rcond=None)
            # The sum of squared errors, but for the number of steps.
            error = float(part @ squares[np.ix_(subset, subset)] @ part - 2 * part @ sums[subset])
            if (part >= 0).all() and error < least:
                best, least = np.zeros(len(sums)), error
                best[subset] = part
    fixed, streamed, worked, cached = map(float, best)
    return fixed, streamed, worked, cached
