"""Arrivals: recorded traffic or drawn, at a rate that fits the machine."""

import math
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from policies.simulation.rates import Rates
from pruners.data.readers import read_csv, read_json_lines
from pruners.support.errors import UserError

_LEAST = 8


class TrafficError(UserError):
    """A trace that cannot be read. One clear line."""


class Arrival(NamedTuple):
    """One request: when (seconds), how long its prompt and its answer are (tokens)."""

    at: float
    prompt: int
    output: int


def synthetic(requests: int, seed: int) -> list[Arrival]:
    """Poisson arrivals with log-normal lengths, for when there is no trace."""
    chance, clock, made = random.Random(seed), 0.0, []
    for _ in range(requests):
        clock += chance.expovariate(1.0)
        prompt = min(1000, max(8, int(chance.lognormvariate(4.3, 0.8))))
        output = min(400, max(4, int(chance.lognormvariate(4.0, 0.7))))
        made.append(Arrival(clock, prompt, output))
    return made


def read_trace(path: Path, requests: int | None = None) -> list[Arrival]:
    """The first requests of a trace, times from 0. Raises `TrafficError` or `ReadError`.

    Azure's CSV (`TIMESTAMP`, in UTC where it names no zone, `ContextTokens`, `GeneratedTokens`),
    BurstGPT's (`Timestamp`, `Request tokens`, `Response tokens`) or Mooncake's JSON lines
    (`timestamp` in milliseconds, `input_length`, `output_length`).
    """
    rows = read_json_lines(path) if path.suffix.lower() == ".jsonl" else read_csv(path)
    made = []
    for number, row in islice(rows, requests):
        try:
            made.append(_arrival(row))
        except KeyError as error:
            raise TrafficError(
                f"{path} line {number}: no {error}; expected a trace as Azure, BurstGPT or "
                "Mooncake publish them"
            ) from error
        except (ValueError, TypeError) as error:
            raise TrafficError(f"{path} line {number}: {error}") from error
    if len(made) < _LEAST:
        raise TrafficError(f"{path} holds {len(made)} requests; at least {_LEAST} are needed")
    made.sort(key=lambda one: one.at)
    start = made[0].at
    return [Arrival(one.at - start, one.prompt, one.output) for one in made]


def _arrival(row: object) -> Arrival:
    """Raises `KeyError`, `ValueError` or `TypeError`."""
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
    found = float(value)
    if not math.isfinite(found):
        raise ValueError(f"{value} is no time")
    return found


def _tokens(value: Any) -> int:  # noqa: ANN401
    found = int(value)
    if found < 0 or isinstance(value, bool | float):
        raise ValueError(f"{value} is no number of tokens")
    return found


def shortened(arrivals: Sequence[Arrival], prompt: int, output: int) -> list[Arrival]:
    """Lengths scaled so that their medians are these, for a machine that is not a data centre."""
    middle = len(arrivals) // 2
    prompts = prompt / max(1, sorted(a.prompt for a in arrivals)[middle])
    outputs = output / max(1, sorted(a.output for a in arrivals)[middle])
    return [
        Arrival(a.at, max(4, int(a.prompt * prompts)), max(2, int(a.output * outputs)))
        for a in arrivals
    ]


def at_load(arrivals: Sequence[Arrival], load: float, rates: Rates, rows: int) -> list[Arrival]:
    """The same requests at `load` times the rate that a full batch of the base can serve."""
    busy = sum(rates.work(0, a.prompt, a.output, rows) for a in arrivals)
    span = max(arrivals[-1].at - arrivals[0].at, 1e-9)
    stretch = busy / load / span
    start = arrivals[0].at
    return [Arrival((at - start) * stretch, prompt, output) for at, prompt, output in arrivals]
