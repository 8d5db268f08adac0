"""How long a step takes: fitted once from measured steps, corrected by every step that follows."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from controller.load import StepRecord
from pruners.architecture import Shape
from pruners.variant import VariantSpec

Rows = Iterable[tuple[VariantSpec, int]]
_SMOOTHING = 0.1  # weight of the newest step in the running correction


class StepModel:
    """Seconds of a step = fixed + streamed parameters / bandwidth + multiplied ones / throughput.

    A mixed batch streams the union of its variants' weights once and multiplies what each row asks
    for; cached keys and values count as streamed. The correction follows the host: when something
    else takes the processor, every prediction grows within a few steps.
    """

    def __init__(self, shape: Shape, own: Mapping[str, int] | None = None) -> None:
        """`own` says how many numbers a variant reads beside the shared weights, by its name."""
        self._shape = shape
        self._own = own or {}
        # By names, which hash quickly. Which variants may meet in a step has no small bound.
        self._seen: dict[str, VariantSpec] = {}
        self._multiplied: dict[str, int] = {}
        self._streamed = lru_cache(maxsize=4096)(self._union)
        self._coefficients = (0.0, 0.0, 0.0)
        self.correction = 1.0
        self._took = self._predicted = 0.0  # running means of steps, in seconds
        self.fitted = False

    def fit(self, records: Sequence[StepRecord]) -> None:
        """Least squares on relative errors with coefficients >= 0."""
        features = np.array([self._features(r.rows, r.sampled, r.cached) for r in records])
        seconds = np.array([r.seconds for r in records])
        found = _non_negative(features / seconds[:, None], np.ones(len(records)))
        self._coefficients = (float(found[0]), float(found[1]), float(found[2]))
        self.correction = 1.0
        self._took = self._predicted = float(seconds.mean())
        self.fitted = True

    def observe(self, record: StepRecord) -> None:
        """Moves the correction towards what this step took."""
        predicted = self._raw(record.rows, record.sampled, record.cached)
        # One stalled step says little; the bound keeps it from ruling the next fifty.
        seconds = min(max(record.seconds, 0.2 * predicted), 5.0 * predicted)
        # Sums, not the mean of ratios: a short step that a busy host delays by a millisecond says
        # nothing of long ones, and it is long ones that make a queue.
        self._took += _SMOOTHING * (seconds - self._took)
        self._predicted += _SMOOTHING * (predicted - self._predicted)
        if self._predicted > 0:
            self.correction = self._took / self._predicted

    def seconds(self, rows: Rows, sampled: int, cached: int) -> float:
        """Predicted seconds of a step over `rows` (variant, tokens) with `cached` tokens read."""
        return self.correction * self._raw(rows, sampled, cached)

    def per_cached(self) -> float:
        """Predicted seconds of a step for each cached token that it reads."""
        shape = self._shape
        streamed = 2 * shape.layers * shape.kv_groups * shape.head_dim
        return self.correction * float(self._coefficients[1]) * streamed / 1e9

    def _raw(self, rows: Rows, sampled: int, cached: int) -> float:
        fixed, streamed, worked = self._features(rows, sampled, cached)
        first, second, third = self._coefficients
        return fixed * first + streamed * second + worked * third

    def _features(self, rows: Rows, sampled: int, cached: int) -> tuple[float, float, float]:
        shape = self._shape
        head = shape.hidden * shape.vocab
        worked, present = sampled * head, set()
        for variant, tokens in rows:
            if tokens:
                worked += tokens * self._parameters(variant)
                present.add(variant.name)
        streamed = self._streamed(frozenset(present)) + (head if sampled else 0)
        streamed += cached * 2 * shape.layers * shape.kv_groups * shape.head_dim
        return 1.0, streamed / 1e9, worked / 1e9

    def _parameters(self, variant: VariantSpec) -> int:
        """What one row multiplies."""
        found = self._multiplied.get(variant.name)
        if found is None:
            found = variant.body_parameters(self._shape) + self._own.get(variant.name, 0)
            self._seen[variant.name], self._multiplied[variant.name] = variant, found
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


def _non_negative(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The non-negative least-squares solution; with three coefficients, by trying every subset."""
    count = features.shape[1]
    best, best_error = np.zeros(count), np.inf
    for size in range(1, count + 1):
        for subset in map(list, combinations(range(count), size)):
            part, *_ = np.linalg.lstsq(features[:, subset], target, rcond=None)
            error = float(np.square(features[:, subset] @ part - target).sum())
            if (part >= 0).all() and error < best_error:
                best, best_error = np.zeros(count), error
                best[subset] = part
    return best
