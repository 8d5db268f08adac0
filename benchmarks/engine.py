"""Decode and prefill beside other engines: `python -m benchmarks.engine [--llama-cpp FOLDER]`.

Everything in one run and in turn. `--llama-cpp` is a folder with `llama-bench` and
`llama-quantize`; OpenVINO GenAI takes part where it is installed. `--model` is another GGUF file,
such as one by `benchmarks.support.random_gguf`, which llama.cpp alone serves beside us. Prints
tokens and bytes a second, the share of the measured copy bandwidth, and how often ours is the
other's speed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.plots import draw_bars
from benchmarks.support.bytes_read import step_bytes
from benchmarks.support.machine import copy_bandwidth
from benchmarks.support.peers import Measure, Peer, file_peers, interleaved, medians, peers
from benchmarks.support.results import option_parser, save_result, spread
from pruners.variant import BASE
from server.engine.config import ModelConfig
from server.engine.loading.configured_model import load_configured_model
from server.engine.loading.load import LoadedModel
from server.engine.loading.source import DEFAULT_MODEL
from server.jobs.step_timing import decode_timer, open_zeroed_decoder, prefill_timer
from telemetry.machine import describe

Series = dict[tuple[str, str], list[float]]
"""Tokens a second of each repeat, by engine and kind of measurement (`decode 1 x 128`)."""
Speeds = dict[tuple[str, str], float]
"""The median of each."""
ROWS = (1, 2, 4, 8, 16, 32)
CACHED = (128, 2000)  # and the tokens that are decoded stay below the context of 2048 or 8192
PROMPTS = (128, 512)


class MeasuredSizes(NamedTuple):
    """Rows of a batch and tokens cached for each, in every combination, and tokens of prompts."""

    rows: Sequence[int]
    cached: Sequence[int]
    prompts: Sequence[int]


def main() -> None:
    """Run the benchmark and print its table."""
    options = option_parser(__doc__)
    options.add_argument("--model", type=Path, help="a GGUF file in place of the default model")
    options.add_argument("--weights", default="auto")
    options.add_argument("--rows", type=int, nargs="+", default=ROWS)
    options.add_argument("--cached", type=int, nargs="+", default=CACHED)
    options.add_argument("--prompts", type=int, nargs="*", default=PROMPTS)
    options.add_argument("--llama-cpp", type=Path)
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args()
    name = DEFAULT_MODEL if arguments.model is None else str(arguments.model)
    model = load_configured_model(ModelConfig(name, weights=arguments.weights))
    threads = torch.get_num_threads()
    ours = f"trimtab {model.weights.precision}"
    if arguments.model is None:
        others = peers(arguments.llama_cpp, threads)
    else:
        others = file_peers(arguments.llama_cpp, arguments.model, threads)
    names = [ours, *(peer.name for peer in others)]
    sizes = MeasuredSizes(arguments.rows, arguments.cached, arguments.prompts)
    jobs = _measurements(model, ours, others, sizes)
    found = interleaved(jobs, arguments.repeats)
    speeds = medians(found)
    ratios = _ratios(speeds, ours, names[1:])
    bandwidth = copy_bandwidth()

    console = Console(width=140)
    console.print(describe())
    title = f"{model.name}, {threads} threads, tokens/s (median ± half range)"
    console.print(_table(title, model, names, found, bandwidth))
    for what, ratio in ratios.items():
        console.print(f"{what}: {ratio:.2f}x")
    spreads = {key: spread(values) for key, values in found.items()}
    result = {
        "machine": describe(),
        "threads": threads,
        "copy_bandwidth": bandwidth,
        "tokens_per_second": {name: _of(name, speeds) for name in names},
        "spread": {name: _of(name, spreads) for name in names},
        "ratios": ratios,
    }
    measured = model.weights.precision if arguments.model is None else arguments.model.stem
    path = save_result(f"engine-{measured}", result, arguments.json)
    draw_bars(path.with_suffix(".png"), {name: _of(name, speeds) for name in names}, "tokens/s")
    console.print(f"written to {path}")


def _measurements(
    model: LoadedModel,
    ours: str,
    others: Sequence[Peer],
    sizes: MeasuredSizes,
) -> dict[tuple[str, str], Measure]:
    """Return what to measure, by engine and kind: each call returns tokens a second."""
    base = model.variants[BASE]
    slots = max(max(sizes.rows) * (max(sizes.cached) + 64), *sizes.prompts, 0)
    decoder = open_zeroed_decoder(model, slots)
    jobs: dict[tuple[str, str], Measure] = {}

    def rate(seconds: Measure, tokens: int) -> Measure:
        return lambda: tokens / seconds()

    for cached in sizes.cached:
        for rows in sizes.rows:
            step = decode_timer(decoder, base, rows, cached)
            jobs[ours, f"decode {rows} x {cached}"] = rate(step, rows)
    for tokens in sizes.prompts:
        jobs[ours, f"prefill {tokens}"] = rate(prefill_timer(decoder, base, tokens), tokens)
    for peer in others:
        for cached in sizes.cached:
            jobs[peer.name, f"decode 1 x {cached}"] = peer.decode(cached)
        for tokens in sizes.prompts:
            jobs[peer.name, f"prefill {tokens}"] = peer.prefill(tokens)
    return jobs


def _ratios(speeds: Speeds, ours: str, others: Sequence[str]) -> dict[str, float]:
    """Return our speed over that of each other engine."""
    return {
        f"{kind} over {name}": speeds[ours, kind] / speed
        for (name, kind), speed in speeds.items()
        if name in others
    }


def _table(
    title: str, model: LoadedModel, names: Sequence[str], found: Series, bandwidth: float
) -> Table:
    """Return the table: a row for each kind of measurement, a column for each engine."""
    base, speeds, ours = model.variants[BASE], medians(found), names[0]
    table = Table(title=title)
    for column in ("", *names, "GB/s", "of copy"):
        table.add_column(column, justify="left" if not column else "right")
    for kind in dict.fromkeys(kind for _, kind in found):
        cells = [
            f"{speeds[name, kind]:.0f} ±{spread(found[name, kind]):.0%}"
            if (name, kind) in speeds
            else "-"
            for name in names
        ]
        if kind.startswith("decode"):
            rows, cached = (int(part) for part in kind.split()[1::2])
            read = step_bytes(model, base, rows, cached) * speeds[ours, kind] / rows
            cells += [f"{read / 1e9:.1f}", f"{read / bandwidth:.0%}"]
        table.add_row(kind, *cells)
    return table


def _of(name: str, values: Speeds) -> dict[str, float]:
    return {kind: value for (engine, kind), value in values.items() if engine == name}


if __name__ == "__main__":
    main()
