"""Measures steps for half a second before the first request, to fit the step-time model."""

import itertools
import time
from collections.abc import Sequence

from controller import StepRecord
from pruners.variant import VariantSpec
from server.engine.backends.base import Segment
from server.engine.runner import Runner

_SHORT_CONTEXT, _LONG_CONTEXT = 32, 256  # cached tokens of each row of a decode step
_LONG_CONTEXT_ROWS = 4
_PROMPT_LENGTHS = (32, 128)
_REPEATS = 3


def measure_steps(runner: Runner, variants: Sequence[VariantSpec]) -> list[StepRecord]:
    """Measure decode steps and prompts of each variant, as far as they fit into the cache.

    The fastest of repeated steps counts. The first ones also warm the allocator and the kernels.
    The contents of the cache are arbitrary.
    """
    full = runner.scheduler.limits.max_running
    sizes = [(rows, 1, _SHORT_CONTEXT) for rows in sorted({1, full})]
    sizes += [(min(_LONG_CONTEXT_ROWS, full), 1, _LONG_CONTEXT)]
    sizes += [(1, tokens, 0) for tokens in _PROMPT_LENGTHS]
    fastest: dict[tuple[VariantSpec, int, int, int], float] = {}
    with runner.threads():
        for _, variant, size in itertools.product(range(_REPEATS), variants, sizes):
            seconds = _step(runner, variant, *size)
            if seconds is not None:
                before = fastest.get((variant, *size), seconds)
                fastest[variant, *size] = min(before, seconds)
    return [
        StepRecord(seconds, ((variant, rows * tokens, rows * cached),), rows)
        for (variant, rows, tokens, cached), seconds in fastest.items()
    ]


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
