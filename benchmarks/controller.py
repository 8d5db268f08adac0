"""What a decision and the telemetry cost: `python -m benchmarks.controller`.

Decisions are timed while every core is kept busy by others, prompts and all: p50, p99 and the worst
by backend of the analyzer, over the shipped variants and readers of the default model and a full
queue. The processor time of the thread that decides is what a decision takes if nobody interrupts.
Telemetry is the processor time of one sampler over some seconds, as a share of one core.
"""

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import quantiles
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.support.results import option_parser, save_result
from controller import (
    Analyzer,
    Controller,
    ControllerSettings,
    EngineStatus,
    IncomingRequest,
    SequenceStatus,
    StatusSources,
    StepTimeModel,
)
from controller.analyzer import BACKENDS
from controller.engine_status import StepRecord
from policies import Objectives, RulePolicy
from pruners.variant import BASE
from server.catalogue import build_catalogue, open_sensitivity
from server.engine.config import ModelConfig
from server.engine.loading.configured_model import load_configured_model
from telemetry import default_sampler
from telemetry.machine import describe

_GAP = 0.005
"""Seconds between requests, in which a server sleeps: a loop without a pause would use up its time
slice, and be measured waiting for the next one."""
_TEXT = """the keeper of a lighthouse finds old letters and why do you explain how it was written
step by step first compare the cost then calculate 42 percent of people list three reasons"""


def prompts(count: int, words: int) -> list[str]:
    """Texts of about so many words, no two alike."""
    chance, known = random.Random(0), _TEXT.split()
    return [
        " ".join(chance.choice(known) for _ in range(chance.randint(words // 2, 3 * words // 2)))
        + "?"
        for _ in range(count)
    ]


@contextmanager
def busy() -> Iterator[None]:
    """Every core computes something else inside."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for other in others:
        other.start()
    time.sleep(3)
    try:
        yield
    finally:
        for other in others:
            other.kill()


def _spin() -> None:
    while True:
        sum(range(100_000))


def controller() -> Controller:
    """Over the shipped variants and readers, with a full batch and as many again in the queue."""
    model = load_configured_model(ModelConfig())
    base = model.variants[BASE]
    catalogue = build_catalogue(model, (512, 256), open_sensitivity(model))
    latency = StepTimeModel(model.weights.shape)
    latency.fit(
        [
            StepRecord(0.002 + 0.005 * rows, ((base, rows, 100 * rows),), rows)
            for rows in (1, 2, 4, 8, 64)
        ]
    )
    line = tuple(SequenceStatus(base, i < 8, 0, 100, 100, 200, 300) for i in range(16))
    load = EngineStatus(line, 8, 256, 1600, 16_384)
    sampler = default_sampler()
    sampler.start()

    def host() -> Any:  # noqa: ANN401
        return sampler.latest()

    return Controller(
        catalogue,
        latency,
        RulePolicy(),
        StatusSources(lambda: load, host),
        ControllerSettings(Objectives(2.0)),
    )


def telemetry_share(seconds: float, period: float = 0.5) -> float:
    """Processor time of a sampler's threads over the time that passed."""
    sampler = default_sampler(period_seconds=period)
    sampler.start()
    before, started = time.process_time(), time.monotonic()
    time.sleep(seconds)
    used = time.process_time() - before
    share = used / (time.monotonic() - started)
    sampler.stop()
    return share


def main() -> None:
    """Measures and prints."""
    options = option_parser(__doc__)
    options.add_argument("--decisions", type=int, default=2000)
    options.add_argument("--words", type=int, default=100, help="of a prompt, on average")
    arguments = options.parse_args()
    asked = prompts(arguments.decisions, arguments.words)
    decide, tokens = controller(), list(range(1000, 1150))
    table = RichTable(title="Milliseconds of a decision, every core busy")
    titles = ("backend", "p50", "p99", "worst", "read by it", "processor p50", "processor p99")
    for title in titles:
        table.add_column(title, justify="right")
    found: dict[str, Any] = {}
    with busy():
        for backend in reversed(BACKENDS):
            analyzer, times, processor, read = Analyzer(backend), [], [], 0
            for prompt in asked:
                time.sleep(_GAP)
                started, used = time.perf_counter(), time.thread_time()
                features = analyzer(prompt)
                read_in_full = decide.catalogue.full_from(tokens)
                decide.decide(IncomingRequest(features, 150, 128, full_from=read_in_full))
                times.append(1e3 * (time.perf_counter() - started))
                processor.append(1e3 * (time.thread_time() - used))
                read += features.backend == backend
            cuts, used_cuts = quantiles(times, n=100), quantiles(processor, n=100)
            found[backend] = {
                "p50_ms": cuts[49],
                "p99_ms": cuts[98],
                "worst_ms": max(times),
                "read_by_it": read / len(asked),
                "processor_p50_ms": used_cuts[49],
                "processor_p99_ms": used_cuts[98],
            }
            table.add_row(backend, *(f"{value:.3f}" for value in found[backend].values()))
    share = telemetry_share(20.0)
    console = Console()
    console.print(table)
    console.print(f"telemetry: {share:.2%} of a core")
    result = {"machine": describe(), "decision": found, "telemetry_share_of_a_core": share}
    console.print(f"written to {save_result('controller', result, arguments.json)}")


if __name__ == "__main__":
    main()
