"""Decode and prefill speed of the base and each variant, beside `transformers.generate`.

`python -m benchmarks.engine`: everything in one process and interleaved, so that a machine that
slows down does so for all. Prints medians, the spread, bytes per second and, for variants, how much
of the byte reduction became speed.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import copy_bandwidth, save, spread
from pruners.variant import BASE, VariantSpec
from server.app import build_runner, load
from server.engine.load import LoadedModel, load_transformers
from server.engine.runner import Runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest, Sequence
from server.engine.source import resolve_model
from server.engine.text import StopRules, TextStream
from server.settings import Settings
from telemetry.machine import describe

PROMPT, OUTPUT = 64, 32


def engine_decode(
    runner: Runner, model: LoadedModel, variant: VariantSpec, rows: int
) -> Callable[[], float]:
    """One measurement: tokens per second of `rows` answers decoded together, prompts excluded."""

    def measure() -> float:
        seconds: list[float] = []
        for index in range(rows):
            runner.scheduler.add(_sequence(model, variant, index, PROMPT, OUTPUT))
        while runner.step(lambda r: seconds.append(r.seconds) if r.sampled == rows else None):
            pass
        return rows / median(seconds[1:])

    return measure


def engine_prefill(
    runner: Runner, model: LoadedModel, variant: VariantSpec, tokens: int
) -> Callable[[], float]:
    """One measurement: prompt tokens per second of one prompt."""

    def measure() -> float:
        runner.scheduler.add(_sequence(model, variant, 0, tokens, 1))
        started = time.perf_counter()
        while runner.step():
            pass
        return tokens / (time.perf_counter() - started)

    return measure


def transformers_speed(model: torch.nn.Module, tokens: int, output: int) -> Callable[[], float]:
    """Tokens per second of `generate()`; `output` 1 gives the prompt's speed instead."""
    ids = torch.arange(tokens)[None] + 100
    model.generation_config.eos_token_id = None

    def generate(new: int) -> float:
        started = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False
        )
        return time.perf_counter() - started

    def measure() -> float:
        if output == 1:
            return tokens / generate(1)
        return (output - 1) / (generate(output) - generate(1))

    return measure


def _sequence(
    model: LoadedModel, variant: VariantSpec, index: int, prompt: int, output: int
) -> Sequence:
    request = GenerationRequest(
        request_id="bench",
        prompt=tuple(range(100 + index, 100 + index + prompt)),
        max_tokens=output,
        variant=variant,
        sampling=SamplingParams(temperature=0.0),
    )
    return Sequence(request, TextStream(model.tokenizer, StopRules()), lambda _: None)


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    settings = Settings(weights=arguments.weights, max_running=8, step_tokens=512)
    model = load(settings)
    runner = build_runner(model, settings, free_bytes=None)
    shape, dtype = model.weights.shape, model.weights.dtype
    peer = load_transformers(resolve_model(settings.model), dtype)

    jobs: dict[tuple[str, str], Callable[[], float]] = {
        ("transformers", "decode 1"): transformers_speed(peer, PROMPT, OUTPUT),
        ("transformers", "prefill 128"): transformers_speed(peer, 128, 1),
        ("transformers", "prefill 512"): transformers_speed(peer, 512, 1),
    }
    for name, variant in model.variants.items():
        for rows in (1, 8):
            jobs[name, f"decode {rows}"] = engine_decode(runner, model, variant, rows)
        for tokens in (128, 512):
            jobs[name, f"prefill {tokens}"] = engine_prefill(runner, model, variant, tokens)
    found: dict[tuple[str, str], list[float]] = {key: [] for key in jobs}
    with torch.inference_mode():
        for job in jobs.values():
            job()  # warm-up, not counted
        for _ in range(arguments.repeats):
            for key, job in jobs.items():
                found[key].append(job())

    speed = {key: median(values) for key, values in found.items()}
    bandwidth = copy_bandwidth()
    itemsize = dtype.itemsize
    bytes_of = {n: itemsize * v.parameters(shape) for n, v in model.variants.items()}
    columns = ("decode 1", "decode 8", "prefill 128", "prefill 512")
    table = Table(title=f"{model.name}, {arguments.weights}, tokens/s (median ± half range)")
    for title in ("", *columns, "GB/s", "of copy", "bytes", "speed-up 1", "over byte reduction"):
        table.add_column(title, justify="left" if not title else "right")
    rows_out = {}
    for name in ("transformers", *model.variants):
        cells = [
            f"{speed[name, c]:.1f} ±{spread(found[name, c]):.0%}" if (name, c) in speed else "-"
            for c in columns
        ]
        row = {c: speed.get((name, c)) for c in columns}
        if name in bytes_of:
            rate = bytes_of[name] * speed[name, "decode 1"]
            faster = speed[name, "decode 1"] / speed[BASE, "decode 1"]
            reduction = bytes_of[BASE] / bytes_of[name]
            cells += [f"{rate / 1e9:.1f}", f"{rate / bandwidth:.0%}"]
            cells += [f"{1 / reduction:.3f}", f"{faster:.2f}x", f"{faster / reduction:.2f}"]
            row |= {"bytes_ratio": 1 / reduction, "speed_up": faster}
        table.add_row(name, *cells)
        rows_out[name] = row
    console = Console(width=150)
    console.print(describe())
    console.print(table)
    one, eight = speed[BASE, "decode 1"], speed[BASE, "decode 8"]
    ratios = {
        "one stream over transformers": one / speed["transformers", "decode 1"],
        "eight streams over one": eight / one,
        "prefill 512 over transformers": speed[BASE, "prefill 512"]
        / speed["transformers", "prefill 512"],
    }
    for what, ratio in ratios.items():
        console.print(f"{what}: {ratio:.2f}x")
    result = {"machine": describe(), "copy_bandwidth": bandwidth, "rows": rows_out} | ratios
    console.print(f"written to {save(f'engine-{arguments.weights}', result)}")


if __name__ == "__main__":
    main()
