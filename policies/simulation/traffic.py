"""Arrivals of requests: recorded or random, at a rate that fits the machine."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from policies.simulation.rates import Rates
from pruners.data.readers import read_csv, read_json_lines
from pruners.support.errors import UserError

Lengths = Literal["prompts", "own"]
"""How a trace's lengths are scaled. See `scaled`."""
_MEDIAN_PROMPT, _MEDIAN_OUTPUT = 80, 60  # tokens
_MEDIAN_TOTAL, _LONGEST = 360, 1600  # tokens of prompt and answer together
_MIN_PROMPT, _MIN_OUTPUT = 4, 2  # tokens
_MIN_REQUESTS = 8


class TrafficError(UserError):
    """A trace that cannot be read. The message is one line."""


class Arrival(NamedTuple):
    """One request: when it arrives (`at`, seconds), and its tokens of prompt and answer."""

    at: float
    prompt: int
    output: int


def synthetic(requests: int, seed: int) -> list[Arrival]:
    """Return Poisson arrivals, one a second, with log-normal lengths."""
    generator, clock, arrivals = random.Random(seed), 0.0, []
    for _ in range(requests):
        clock += generator.expovariate(1.0)
        prompt = min(1000, max(8, int(generator.lognormvariate(4.3, 0.8))))
        output = min(400, max(4, int(generator.lognormvariate(4.0, 0.7))))
        arrivals.append(Arrival(clock, prompt, output))
    return arrivals


def read_trace(path: Path, requests: int | None = None) -> list[Arrival]:
    """Return the first `requests` of a trace, with times from 0.

    Formats: Azure's CSV (`TIMESTAMP`, in UTC without a zone, `ContextTokens`, `GeneratedTokens`),
    BurstGPT's (`Timestamp`, `Request tokens`, `Response tokens`) or Mooncake's JSON lines
    (`timestamp` in milliseconds, `input_length`, `output_length`).

    Raises `TrafficError` or `ReadError`.
    """
    rows = read_json_lines(path) if path.suffix.lower() == ".jsonl" else read_csv(path)
    arrivals = []
    for number, row in islice(rows, requests):
        try:
            arrivals.append(_arrival(row))
        except KeyError as error:
            raise TrafficError(
                f"{path} line {number}: no {error}; expected a trace as Azure, BurstGPT or "
                "Mooncake publish them"
            ) from error
        except (ValueError, TypeError) as error:
            raise TrafficError(f"{path} line {number}: {error}") from error
    if len(arrivals) < _MIN_REQUESTS:
        raise TrafficError(
            f"{path} holds {len(arrivals)} requests; at least {_MIN_REQUESTS} are needed"
        )
    arrivals.sort(key=lambda arrival: arrival.at)
    start = arrivals[0].at
    return [Arrival(at - start, prompt, output) for at, prompt, output in arrivals]


def _arrival(row: object) -> Arrival:
    """Return the arrival of a row. Raises `KeyError`, `ValueError` or `TypeError`."""
    if not isinstance(row, Mapping):
        raise TypeError("no object")
    if "TIMESTAMP" in row:
        moment = datetime.fromisoformat(str(row["TIMESTAMP"]).strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        lengths = _tokens(row["ContextTokens"]), _tokens(row["GeneratedTokens"])
        return Arrival(moment.timestamp(), *lengths)
    if "Timestamp" in row:
        lengths = _tokens(row["Request tokens"]), _tokens(row["Response tokens"])
        return Arrival(_seconds(row["Timestamp"]), *lengths)
    lengths = _tokens(row["input_length"]), _tokens(row["output_length"])
    return Arrival(_seconds(row["timestamp"]) / 1e3, *lengths)


def _seconds(value: Any) -> float:  # noqa: ANN401
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(f"{value} is no time")
    return seconds


def _tokens(value: Any) -> int:  # noqa: ANN401
    tokens = int(value)
    if tokens < 0 or isinstance(value, bool | float):
        raise ValueError(f"{value} is no number of tokens")
    return tokens


def scaled(arrivals: Sequence[Arrival], lengths: Lengths) -> list[Arrival]:
    """Return the requests with lengths that suit a small machine; those of data centres do not.

    `prompts`: prompts and answers are scaled each for itself, to medians that chats on small
    machines have. `own`: both by one factor, so that the ratio of prompt to answer is the trace's.
    """
    if lengths == "own":
        return scaled_together(arrivals, _MEDIAN_TOTAL, _LONGEST)
    return shortened(arrivals, _MEDIAN_PROMPT, _MEDIAN_OUTPUT)


def shortened(arrivals: Sequence[Arrival], prompt: int, output: int) -> list[Arrival]:
    """Return the requests with lengths scaled to the medians `prompt` and `output`, in tokens."""
    prompts = prompt / max(1, _median(a.prompt for a in arrivals))
    outputs = output / max(1, _median(a.output for a in arrivals))
    return [
        Arrival(
            a.at, max(_MIN_PROMPT, int(a.prompt * prompts)),
            max(_MIN_OUTPUT, int(a.output * outputs)),
        )
        for a in arrivals
    ]  # fmt: skip


def scaled_together(arrivals: Sequence[Arrival], total: float, longest: int) -> list[Arrival]:
    """Return the requests with prompt and answer scaled by one factor, never made longer.

    The median of prompt and answer together becomes at most `total` tokens. A request that would be
    of more than `longest` tokens is scaled further, by a factor of its own.
    """
    factor = min(1.0, total / max(1, _median(a.prompt + a.output for a in arrivals)))
    found = []
    for at, prompt, output in arrivals:
        own = min(factor, longest / max(1, prompt + output))
        lengths = max(_MIN_PROMPT, int(own * prompt)), max(_MIN_OUTPUT, round(own * output))
        found.append(Arrival(at, *lengths))
    return found


def _median(values: Iterable[int]) -> int:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def at_load(arrivals: Sequence[Arrival], load: float, rates: Rates, rows: int) -> list[Arrival]:
    """Return the requests at `load` times the rate that full batches of the base can serve.

    A full batch has `rows` answers.
    """
    work = sum(rates.work(0, a.prompt, a.output, rows) for a in arrivals)
    span = max(arrivals[-1].at - arrivals[0].at, 1e-9)
    stretch = work / load / span
    start = arrivals[0].at
    return [Arrival((at - start) * stretch, prompt, output) for at, prompt, output in arrivals]
