"""Measures steps in the first idle half second, to fit the step-time model."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence

from controller import StepRecord
from pruners.variant import VariantSpec
from server.engine.backends.base import Segment
from server.engine.runner import Runner

_SHORT_CONTEXT, _LONG_CONTEXT = 32, 256  # cached tokens of each row of a decode step
_LONG_CONTEXT_ROWS = 4
_PROMPT_LENGTHS = (32, 128)
_REPEATS = 3


class FirstMeasurements:
    """Idle work: decode steps and prompts of each variant, as far as they fit into the cache.

    The fastest of repeated steps counts. The contents of the cache are arbitrary. `on_measured` is
    called once, with all records.
    """

    slots = 0  # between two pieces nothing is held

    def __init__(
        self,
        runner: Runner,
        variants: Sequence[VariantSpec],
        on_measured: Callable[[list[StepRecord]], None],
    ) -> None:
        full = runner.scheduler.limits.max_running
        sizes = [(rows, 1, _SHORT_CONTEXT) for rows in sorted({1, full})]
        sizes += [(min(_LONG_CONTEXT_ROWS, full), 1, _LONG_CONTEXT)]
        sizes += [(1, tokens, 0) for tokens in _PROMPT_LENGTHS]
        self._runner = runner
        self._on_measured = on_measured
        self._left = deque(itertools.product(range(_REPEATS), variants, sizes))
        self._fastest: dict[tuple[VariantSpec, int, int, int], float] = {}

    def step(self) -> bool:
        """Measure one step. Return False if all are measured."""
        if not self._left:
            return False
        _, variant, size = self._left.popleft()
        seconds = _step(self._runner, variant, *size)
        if seconds is not None:
            before = self._fastest.get((variant, *size), seconds)
            self._fastest[variant, *size] = min(before, seconds)
        if not self._left:
            self._on_measured(
                [
                    StepRecord(seconds, ((variant, rows * tokens, rows * cached),), rows)
                    for (variant, rows, tokens, cached), seconds in self._fastest.items()
                ]
            )
        return True

    def make_way(self) -> None:
        """Do nothing: no memory is held."""


def _step(
    runner: Runner, variant: VariantSpec, rows: int, tokens: int, cached: int
) -> float | None:
    """Return seconds of a step of `rows` sequences of `tokens` tokens each, with the arg-max.

    Return None if it does not fit.
    """
    decoder = runner.decoder
    if cached + tokens > decoder.weights.context:
        return None
    caches = [decoder.cache.open() for _ in range(rows)]
    try:
        if not all(cache.reserve(cached + tokens) for cache in caches):
            return None
        for cache in caches:
            cache.processed = cache.cached = cached
        started = time.perf_counter()
        segments = [Segment([0] * tokens, cache, variant, outputs=1) for cache in caches]
        hidden = decoder.forward(segments)
        decoder.argmax(hidden if tokens == 1 else hidden[-1:])
        return time.perf_counter() - started
    finally:
        for cache in caches:
            cache.close()
