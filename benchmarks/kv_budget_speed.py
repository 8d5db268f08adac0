"""Time of a decode step by how a KV budget is kept: `python -m benchmarks.kv_budget_speed`.

`--rows` answers are written at once, behind prompts of `--cached` tokens: without a budget, with
one that evicts, and with those that select pages. `benchmarks.kv_budgets` says what they lose.
"""

import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.support.peers import Measure, interleaved
from benchmarks.support.results import option_parser, options_as_json, save_result, spread
from pruners.kv import QUEST, make_kv_budget
from pruners.support.errors import UserError
from server.engine.config import EngineConfig, ModelConfig
from server.engine.loading.configured_model import load_configured_model
from server.engine.loading.load import LoadedModel
from server.engine.runner_factory import build_runner
from server.jobs.kv_budget_timing import AnswerSize, time_step
from telemetry.machine import describe

METHODS = ((None, ""), (1024, "streaming"), (640, QUEST), (512, QUEST))
"""Budgets in tokens (None: without), and how each is kept."""


def measure(
    model: LoadedModel, size: AnswerSize, methods: Sequence[tuple[int | None, str]], repeats: int
) -> list[dict[str, Any]]:
    """Return the seconds of a step for each method, and how many times as fast as the first."""
    slots = size.rows * (size.prompt + size.written + 64)
    config = EngineConfig(max_running=size.rows, kv_tokens=slots, speculate=False)
    runner = build_runner(model, config, None)

    def timer(budget: int | None, method: str) -> Measure:
        kept = None if budget is None else make_kv_budget(budget, method)
        return lambda: time_step(runner, model, size, kept)

    jobs = {
        (method or "whole", str(budget or "")): timer(budget, method) for budget, method in methods
    }
    seconds = interleaved(jobs, repeats)
    first = median(next(iter(seconds.values())))
    return [
        {
            "budget": " ".join(job).strip(),
            "seconds": median(own),
            "spread": spread(own),
            "speed_up": first / median(own),
        }
        for job, own in seconds.items()
    ]


def main() -> None:
    """Measure all methods and print the table."""
    options = option_parser(__doc__)
    options.add_argument("--weights", default="auto")
    options.add_argument("--rows", type=int, default=8)
    options.add_argument("--cached", type=int, default=2000)
    options.add_argument("--written", type=int, default=64)
    options.add_argument("--repeats", type=int, default=3)
    arguments = options.parse_args()
    try:
        model = load_configured_model(ModelConfig(weights=arguments.weights))
        if not model.weights.selects_pages:
            raise UserError("pages are selected by the native kernels only; see --weights")
    except UserError as error:
        sys.exit(f"error: {error}")
    size = AnswerSize(arguments.rows, arguments.cached, arguments.written)
    rows = measure(model, size, METHODS, arguments.repeats)
    threads = torch.get_num_threads()
    table = Table(
        title=f"{model.name}, {size.rows} answers behind {size.prompt} tokens, {threads=}"
    )
    for column in ("budget", "ms per step", "spread", "times as fast"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (f"{1e3 * row['seconds']:.1f}", f"{row['spread']:.1%}", f"{row['speed_up']:.2f}")
        table.add_row(row["budget"], *numbers)
    Console().print(table)
    result = {
        "machine": describe(),
        "threads": threads,
        "arguments": options_as_json(arguments),
        "rows": rows,
    }
    name = f"kv-budget-speed-{model.weights.precision}"
    print(f"written to {save_result(name, result, arguments.json)}")


if __name__ == "__main__":
    main()
