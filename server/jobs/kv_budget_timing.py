"""Measures how long decode steps take with KV budgets and without, as the engine serves them."""

import time
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean, median
from typing import NamedTuple

from rich.progress import Progress

from pruners.kv import KVBudget, make_eviction
from pruners.support.progress import track
from pruners.variant import BASE
from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel
from server.engine.offline import answer_all
from server.engine.runner import Runner
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest, Sequence

ROWS = (1, 8)
"""Numbers of answers at once that are timed."""
_TOKEN_ID = 5  # any; which one takes no time


def time_budgets(
    model: LoadedModel, budgets: Iterable[int], repeats: int = 3, progress: Progress | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the seconds of a decode step by budget and rows: `whole` without it, `kept` with it.

    They are medians of mean steps, and evictions are included. Sequences are one and a half budgets
    long, which is their mean length while they grow from one budget to two. Budgets that are more
    than half of the model's context are left out.
    """
    sizes = [
        (budget, rows) for budget in budgets if 2 * budget <= model.weights.context for rows in ROWS
    ]
    if not sizes:
        return {}
    slots = max(512, *(2 * budget * rows for budget, rows in sizes))
    config = EngineConfig(kv_tokens=slots, max_running=max(ROWS), speculate=False)
    runner = build_runner(model, config, None)
    measured: dict[tuple[int, int, str], list[float]] = {}
    for _ in track(range(repeats), "Timing KV budgets", progress):
        for budget, rows in sizes:
            for name, eviction in (("whole", None), ("kept", make_eviction(budget))):
                size = AnswerSize(rows, budget + budget // 2, max(8, budget // 4))
                seconds = time_step(runner, model, size, eviction)
                measured.setdefault((budget, rows, name), []).append(seconds)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for (budget, rows, name), values in measured.items():
        result.setdefault(str(budget), {}).setdefault(str(rows), {})[name] = median(values)
    return result


class AnswerSize(NamedTuple):
    """How many answers are written at once, and the tokens of their prompts and of each answer."""

    rows: int
    prompt: int
    written: int


def time_step(
    runner: Runner, model: LoadedModel, size: AnswerSize, budget: KVBudget | None
) -> float:
    """Return the mean seconds between steps in which all answers are written, by the base."""
    request = GenerationRequest(
        request_id="",
        prompt=(_TOKEN_ID,) * size.prompt,
        max_tokens=size.written,
        variant=model.variants[BASE],
        kv_budget=budget,
        sampling=SamplingParams(temperature=0.0),
    )
    requests = [replace(request, request_id=str(row)) for row in range(size.rows)]
    seconds: list[float] = []
    previous: float | None = None

    def on_step(sequences: list[Sequence]) -> None:
        nonlocal previous
        now = time.perf_counter()
        if previous is not None:
            seconds.append(now - previous)
        previous = now if all(sequence.output for sequence in sequences) else None

    answer_all(runner, model.tokenizer, requests, on_step)
    return fmean(seconds)
