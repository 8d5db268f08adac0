"""Time to read a prompt by each reader: `python -m benchmarks.reading_speed [--artefact FOLDER]`.

One request at a time, from its arrival in the engine to its first token, base and readers in turn.
Prints how much faster each reader reads, the share of the base's multiply-adds that it computes
(attention's own included), and the speed-up over the reduction of compute: 1 where time falls as
much as compute does. Prompts are the documentation's text, so that readers of numbers meet some.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.reading.work import request_work, whole_work
from benchmarks.support.peers import interleaved
from benchmarks.support.results import option_parser, options_as_json, save_result, spread
from pruners.reading.reader import FULL, PromptReader
from pruners.support.errors import UserError
from pruners.variant import BASE
from server.engine.config import EngineConfig, ModelConfig
from server.engine.loading.configured_model import load_configured_model
from server.engine.loading.load import LoadedModel
from server.engine.offline import answer_all
from server.engine.runner import Runner
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest
from telemetry.machine import describe

PROMPTS = (512, 1024)
_TEXTS = ("reading.md", "decisions.md", "operations.md", "policies.md")
_GREEDY = SamplingParams(temperature=0.0)

Row = dict[str, Any]
"""What was measured of one reader and prompt."""


def main() -> None:
    """Measure all readers of an artefact and print the table."""
    options = option_parser(__doc__)
    options.add_argument("--artefact", type=Path)
    options.add_argument("--weights", default="auto")
    options.add_argument("--tokens", type=int, nargs="+", default=PROMPTS)
    options.add_argument("--repeats", type=int, default=9)
    arguments = options.parse_args()
    try:
        config = ModelConfig(weights=arguments.weights, artefact=arguments.artefact)
        model = load_configured_model(config)
        if not model.readers:
            raise UserError("the artefact has no readers; fit some with `trimtab readers`")
    except UserError as error:
        sys.exit(f"error: {error}")
    text = documentation(model, max(arguments.tokens))
    rows = measure(model, text, arguments.tokens, arguments.repeats)
    console = Console(width=140)
    console.print(describe())
    console.print(_table(f"{model.name}, {torch.get_num_threads()} threads", rows))
    result = {
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "arguments": options_as_json(arguments),
        "rows": rows,
    }
    path = save_result(f"reading-speed-{model.weights.precision}", result, arguments.json)
    console.print(f"written to {path}")


def documentation(model: LoadedModel, tokens: int) -> list[int]:
    """Return the first `tokens` tokens of the documentation."""
    folder = Path(__file__).parents[1] / "docs"
    text = "\n".join((folder / name).read_text() for name in _TEXTS)
    found: list[int] = model.tokenizer(text, add_special_tokens=False).input_ids
    if len(found) < tokens:
        raise UserError(f"the documentation has {len(found)} tokens, fewer than {tokens}")
    return found[:tokens]


def measure(
    model: LoadedModel, text: Sequence[int], sizes: Sequence[int], repeats: int
) -> list[Row]:
    """Return what was measured, by prompt and reader; `text` holds the longest prompt of `sizes`.

    A reader's time is set against that of reading in full in the same round.
    """
    runner = build_runner(model, EngineConfig(), None)
    readers = {FULL: None, **model.readers}
    jobs = {
        (str(size), name): _timer(runner, model, text[:size], reader)
        for size in sizes
        for name, reader in readers.items()
    }
    seconds = interleaved(jobs, repeats)
    rows = []
    for (size, name), own in seconds.items():
        ratios = [full / one for full, one in zip(seconds[size, FULL], own, strict=True)]
        share, in_full = _compute(model, text[: int(size)], readers[name])
        rows.append(
            {
                "tokens": int(size),
                "reader": name,
                "in_full": in_full,
                "seconds": median(own),
                "spread": spread(own),
                "compute": share,
                "speed_up": median(ratios),
                "over_reduction": median(ratios) * share,
            }
        )
    return rows


def _timer(
    runner: Runner, model: LoadedModel, prompt: Sequence[int], reader: PromptReader | None
) -> Callable[[], float]:
    """Return what times one request for one token, whose prompt is nowhere in the prefix cache."""

    def run() -> float:
        while runner.scheduler.cache.prefixes.drop_oldest():
            pass
        request = GenerationRequest(
            request_id="timed",
            prompt=tuple(prompt),
            max_tokens=1,
            variant=model.variants[BASE],
            sampling=_GREEDY,
            reader=reader,
        )
        started = time.perf_counter()
        answer_all(runner, model.tokenizer, [request])
        return time.perf_counter() - started

    return run


def _compute(
    model: LoadedModel, prompt: Sequence[int], reader: PromptReader | None
) -> tuple[float, int]:
    """Return the share of the base's multiply-adds, and how many tokens are read in full."""
    shape, base = model.weights.shape, model.variants[BASE]
    runs = torch.ones(shape.layers, len(prompt), dtype=torch.bool)
    if reader is not None:
        shallow = reader.shallow(torch.tensor(prompt), model.token_kinds)
        runs[reader.depth :] = ~shallow
    work = request_work(shape, base, runs, torch.ones_like(runs), 0)
    return work.reading / whole_work(shape, base, len(prompt), 0).reading, int(runs[-1].sum())


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=f"time to the first token, {title}, medians (± half range)")
    heads = ("tokens", "read by", "in full", "ms", "speed-up", "compute", "over its reduction")
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(
            str(row["tokens"]),
            row["reader"],
            str(row["in_full"]),
            f"{1000 * row['seconds']:.0f} ±{row['spread']:.0%}",
            f"{row['speed_up']:.2f}",
            f"{row['compute']:.3f}",
            f"{row['over_reduction']:.2f}",
        )
    return table


if __name__ == "__main__":
    main()
