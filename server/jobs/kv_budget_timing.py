"""How long decode steps take with KV budgets and without, as the engine serves them."""

import time
from collections.abc import Iterable
from statistics import median

from rich.progress import Progress

from pruners.kv import Eviction, make_eviction
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
_TOKEN = 5  # any; which one takes no time


def time_budgets(
    model: LoadedModel,
    budgets: Iterable[int],
    repeats: int = 3,
    progress: Progress | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """By budget and rows: medians of a step's mean seconds, `whole` and `kept`, evictions included.

    Sequences are one and a half budgets long, which is their mean while they grow from one budget
    to two; a budget for which the model has no such context is left out.
    """
    fitting = [budget for budget in budgets if 2 * budget <= model.weights.context]
    jobs = [(budget, rows) for budget in fitting for rows in ROWS]
    if not jobs:
        return {}
    room = max(2 * budget * rows for budget, rows in jobs)
    config = EngineConfig(kv_tokens=max(512, room), max_running=max(ROWS), speculate=False)
    runner = build_runner(model, config, None)
    taken: dict[tuple[int, int, str], list[float]] = {}
    for _ in track(range(repeats), "Timing KV budgets", progress):
        for budget, rows in jobs:
            for name, eviction in (("whole", None), ("kept", make_eviction(budget))):
                seconds = _mean_step(runner, model, rows, budget, eviction)
                taken.setdefault((budget, rows, name), []).append(seconds)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (budget, rows, name), values in taken.items():
        found.setdefault(str(budget), {}).setdefault(str(rows), {})[name] = median(values)
    return found


def _mean_step(
    runner: Runner, model: LoadedModel, rows: int, budget: int, eviction: Eviction | None
) -> float:
    steps: list[float] = []
    before: float | None = None

    def note(sequences: list[Sequence]) -> None:
        nonlocal before
        now = time.perf_counter()
        if before is not None:
            steps.append(now - before)
        before = now if all(s.output for s in sequences) else None

    requests = [
        GenerationRequest(
            request_id=str(row),
            prompt=(_TOKEN,) * (budget + budget // 2),
            max_tokens=max(8, budget // 4),
            variant=model.variants[BASE],
            kv_budget=eviction,
            sampling=SamplingParams(temperature=0.0),
        )
        for row in range(rows)
    ]
    answer_all(runner, model.tokenizer, requests, note)
    return sum(steps) / len(steps)
