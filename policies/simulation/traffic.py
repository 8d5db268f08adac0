"""Arrivals: recorded traffic or drawn, at a rate that fits the machine."""

import csv
import json
import random
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from policies.simulation.rates import Rates
from pruners.errors import UserError

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
    """The first requests of a trace, times from 0. Raises `TrafficError`.

    Azure's CSV (`TIMESTAMP`, `ContextTokens`, `GeneratedTokens`), BurstGPT's (`Timestamp`, `Request
    tokens`, `Response tokens`) or Mooncake's JSON lines (`timestamp` in milliseconds,
    `input_length`, `output_length`).
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            if path.suffix == ".jsonl":
                rows = [json.loads(line) for line in lines if line.strip()]
            else:
                rows = list(csv.DictReader(lines))
        made = [_arrival(row) for row in rows[:requests]]
    except OSError as error:
        raise TrafficError(f"cannot read {path}: {error.strerror}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise TrafficError(
            f"{path}: expected a trace as Azure, BurstGPT or Mooncake publish them ({error!r})"
        ) from error
    if len(made) < _LEAST:
        raise TrafficError(f"{path} holds {len(made)} requests; at least {_LEAST} are needed")
    made.sort(key=lambda one: one.at)
    start = made[0].at
    return [Arrival(one.at - start, one.prompt, one.output) for one in made]


def _arrival(row: dict[str, Any]) -> Arrival:
    if "TIMESTAMP" in row:
        at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
        return Arrival(at, int(row["ContextTokens"]), int(row["GeneratedTokens"]))
    if "Timestamp" in row:
        lengths = int(row["Request tokens"]), int(row["Response tokens"])
        return Arrival(float(row["Timestamp"]), *lengths)
    return Arrival(row["timestamp"] / 1e3, int(row["input_length"]), int(row["output_length"]))


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
