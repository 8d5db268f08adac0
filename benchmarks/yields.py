"""What choices keep for what they cost: `python -m benchmarks.yields --trace FILE --prompts FILE`.

Whole requests of a trace's own lengths (those that are longer than `--longest` are scaled, prompt
and answer together), real prompts, eight always at work, in one engine without HTTP. The base and
each choice answer the same requests in turn, again and again. The yield of a choice is exp(-KL) on
the base's answers to these prompts over its time, relative to the base: above 1 it pays to serve
more requests so, below 1 it is better to refuse some.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.replay.long_prompts import prompts_of_lengths
from benchmarks.support.results import option_parser, options_as_json, save_result
from policies.simulation.traffic import Arrival, read_trace, scaled_together
from pruners.variant import BASE
from server.engine.config import EngineConfig, ModelConfig
from server.engine.loading.configured_model import load_configured_model
from server.engine.loading.load import LoadedModel
from server.engine.offline import answer_all
from server.engine.reading_depth import ReadingDepths
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest
from server.jobs.prompt_losses import encode_turns
from server.shadow.teacher_forcing import ForcedModel, TeacherForcing
from telemetry.machine import describe

CLIENTS = 8
_RESAMPLES = 2000
_SCORED = 128  # tokens of an answer on which a loss is measured


def spread_over(arrivals: Sequence[Arrival], count: int) -> list[Arrival]:
    """Return `count` of the requests, with the mean lengths of all.

    One of each group of like prompts, the one whose answer is closest to the group's mean.
    """
    ordered = sorted(arrivals, key=lambda one: (one.prompt, one.output))
    found = []
    for i in range(count):
        group = ordered[i * len(ordered) // count : (i + 1) * len(ordered) // count]
        mean = fmean(one.output for one in group)
        found.append(min(group, key=lambda one: abs(one.output - mean)))
    return found


def yield_interval(quality: Sequence[float], ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the yield, and the ends of its 95 % interval over prompts and repeats.

    `quality` is exp(-KL) of each prompt, `ratios` the time over the base's in each repeat.
    """
    random, kept, costs = np.random.default_rng(0), np.array(quality), np.array(ratios)
    prompts = random.integers(len(kept), size=(_RESAMPLES, len(kept)))
    repeats = random.integers(len(costs), size=(_RESAMPLES, len(costs)))
    found = kept[prompts].mean(1) / np.median(costs[repeats], axis=1)
    low, high = np.quantile(found, [0.025, 0.975])
    return float(kept.mean() / np.median(costs)), float(low), float(high)


@dataclass(frozen=True, slots=True)
class Work:
    """Requests to answer: texts of prompts, and tokens to write."""

    texts: Sequence[str]
    outputs: Sequence[int]

    def tokens(self, model: LoadedModel, turn: int) -> list[tuple[int, ...]]:
        """Return the prompts as tokens, each turn's with another beginning: no cache helps."""
        return [
            encode_turns(model.tokenizer, [{"role": "user", "content": f"{turn}. {text}"}])
            for text in self.texts
        ]

    def requests(self, model: LoadedModel, choice: str, turn: int) -> list[GenerationRequest]:
        """Return the requests of one turn, answered by a choice (`base+read-70`)."""
        variant, _, reader = choice.partition("+")
        return [
            GenerationRequest(
                request_id=f"{turn}-{index}",
                prompt=prompt,
                max_tokens=output,
                variant=model.variants[variant],
                sampling=SamplingParams(seed=index),
                reader=model.readers[reader] if reader else None,
            )
            for index, (prompt, output) in enumerate(
                zip(self.tokens(model, turn), self.outputs, strict=True)
            )
        ]


class YieldMeter:
    """Answers and reads again, in one engine that holds the default model."""

    def __init__(self, model: LoadedModel, work: Work, longest: int) -> None:
        self._model, self._work = model, work
        self._config = EngineConfig(CLIENTS, kv_tokens=CLIENTS * (longest + 512), speculate=False)
        self._runner = build_runner(model, self._config, None)
        self._turn = 0

    def seconds(self, choice: str) -> float:
        """Return the time in which a choice answers all requests."""
        requests = self._work.requests(self._model, choice, self._turn)
        self._turn += 1
        started = time.perf_counter()
        answer_all(self._runner, self._model.tokenizer, requests)
        return time.perf_counter() - started

    def losses(self, choices: Sequence[str]) -> dict[str, list[float]]:
        """Return the KL of each choice on the base's answers, nats per token, by prompt."""
        model = self._model
        reading = ReadingDepths(
            model.weights.shape.layers, model.readers.values(), model.token_kinds
        )
        requests = self._work.requests(model, BASE, self._turn)
        answers = answer_all(self._runner, model.tokenizer, requests)
        found: dict[str, list[float]] = {choice: [] for choice in choices}
        for answer in answers:
            prompt = answer.request.prompt
            for choice in choices:
                variant, _, name = choice.partition("+")
                depths = reading.of(prompt, model.readers[name] if name else None)
                check = TeacherForcing(
                    self._runner.decoder, prompt, answer.output[:_SCORED], model.variants[BASE],
                    [ForcedModel(model.variants[variant], depths)], chunk_tokens=128,
                )  # fmt: skip
                with self._runner.threads():
                    while check.advance():
                        pass
                (loss,) = check.losses()
                check.close()
                found[choice].append(loss.kl)
        return found


def main() -> None:
    """Measure and print the yields."""
    arguments = _options().parse_args()
    model = load_configured_model(ModelConfig())
    choices = arguments.choices or [f"{BASE}+{name}" for name in model.readers]
    for choice in choices:
        variant, _, reader = choice.partition("+")
        if variant not in model.variants or (reader and reader not in model.readers):
            raise SystemExit(f"--choices: {model.name} has no choice {choice}")
    if not choices:
        raise SystemExit(f"{model.name} has no readers; name other choices with --choices")
    trace = scaled_together(read_trace(arguments.trace), float("inf"), arguments.longest)
    chosen = spread_over(trace, arguments.requests)
    prompts = prompts_of_lengths(arguments.prompts, [a.prompt for a in chosen], model.tokenizer)
    work = Work([text for text, _ in prompts], [a.output for a in chosen])
    meter = YieldMeter(model, work, arguments.longest)
    meter.seconds(BASE)  # warms up
    seconds: dict[str, list[float]] = {choice: [] for choice in (BASE, *choices)}
    for _ in range(arguments.repeats):
        for choice in seconds:
            seconds[choice].append(meter.seconds(choice))
    losses = meter.losses(choices)
    rows: dict[str, dict[str, Any]] = {}
    for choice in choices:
        ratios = [own / base for own, base in zip(seconds[choice], seconds[BASE], strict=True)]
        quality = np.exp(-np.array(losses[choice])).tolist()
        rows[choice] = {
            "cost": median(ratios),
            "loss": fmean(losses[choice]),
            "yield": yield_interval(quality, ratios),
        }
    lengths = fmean(tokens for _, tokens in prompts), fmean(a.output for a in chosen)
    _print(rows, lengths)
    result = {"machine": describe(), "arguments": options_as_json(arguments), "lengths": lengths}
    path = save_result(
        f"yields-{arguments.trace.stem}", result | {"seconds": seconds, "choices": rows},
        arguments.json,
    )  # fmt: skip
    print(f"written to {path}")


def _options() -> argparse.ArgumentParser:
    options = option_parser(__doc__)
    options.add_argument("--trace", type=Path, required=True)
    options.add_argument("--prompts", required=True, help="texts that prompts are joined from")
    options.add_argument("--choices", nargs="+", help="as base+read-70; default: all readers")
    options.add_argument("--requests", type=int, default=32)
    options.add_argument("--longest", type=int, default=4096, help="tokens of a request")
    options.add_argument("--repeats", type=int, default=5)
    return options


def _print(rows: dict[str, dict[str, Any]], lengths: tuple[float, float]) -> None:
    console = Console(width=110)
    console.print(describe())
    title = f"{lengths[0]:.0f} tokens in, {lengths[1]:.0f} out, {CLIENTS} at once; 95 % intervals"
    shown = Table(title=title)
    for column in ("choice", "cost", "KL", "yield"):
        shown.add_column(column)
    for choice, row in rows.items():
        value, low, high = row["yield"]
        shown.add_row(
            choice,
            f"{row['cost']:.3f}",
            f"{row['loss']:.3f}",
            f"{value:.3f} ({low:.3f} to {high:.3f})",
        )
    console.print(shown)


if __name__ == "__main__":
    main()
