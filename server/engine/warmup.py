"""Half a second of measured steps before the first request: the latency model's first fit."""

import itertools
import time
from collections.abc import Sequence

from controller import StepRecord
from pruners.variant import VariantSpec
from server.engine.backends.base import Segment
from server.engine.runner import Runner

_CACHED, _LONG, _FEW = 32, 256, 4
"""Tokens that each row of a decode step has cached; of a few rows many."""
_PROMPTS = (32, 128)
_REPEATS = 3


def measure_steps(runner: Runner, variants: Sequence[VariantSpec]) -> list[StepRecord]:
    """Decode steps and prompts of each variant, whatever the caches hold; what there is room for.

    Of repeated steps the fastest counts; the first ones also warm the allocator and the kernels.
    """
    full = runner.scheduler.limits.max_running
    sizes = [(rows, 1, _CACHED) for rows in sorted({1, full})] + [(min(_FEW, full), 1, _LONG)]
    sizes += [(1, tokens, 0) for tokens in _PROMPTS]
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
    """Seconds of a step of `rows` sequences, `tokens` each, the choice of the next included."""
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
