"""The engine's queue on paper: arrivals in, outcomes out, at the speed of the latency model.

It drives the real controller, which sees a simulated load instead of a live one; so a policy is
tried with the code that will serve it. One step at a time, as the scheduler works: every running
answer gets a token, prompts share what is left of the step's tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.latency import StepModel
from controller.load import EngineLoad, SequenceLoad
from pruners.variant import VariantSpec


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace: when (seconds), how long its prompt and its answer are (tokens)."""

    at: float
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request went. Seconds; `loss` in nats per token as measured for its variant."""

    variant: str
    loss: float
    ttft: float
    tpot: float

    @property
    def quality(self) -> float:
        """What is left of the base's quality: exp(-loss), 1 for the base."""
        return math.exp(-self.loss)


@dataclass(slots=True)
class _Row:
    arrival: Arrival
    variant: VariantSpec
    loss: float
    prompt_left: int
    output_left: int
    first: float = 0.0


class Simulator:
    """Replays arrivals. `decide(arrival)` returns the variant and its measured loss."""

    def __init__(
        self, model: StepModel, max_running: int, step_tokens: int, kv_tokens: int
    ) -> None:
        self._model = model
        self._max_running = max_running
        self._step_tokens = step_tokens
        self._kv_tokens = kv_tokens
        self.clock = 0.0  # seconds since the first arrival's zero
        self._running: list[_Row] = []
        self._waiting: list[_Row] = []

    def load(self) -> EngineLoad:
        """What the controller is shown, as the engine would show it."""
        rows = [(row, True) for row in self._running] + [(row, False) for row in self._waiting]
        return EngineLoad(
            sequences=tuple(_load_of(row, running) for row, running in rows),
            max_running=self._max_running,
            step_tokens=self._step_tokens,
            kv_used=sum(_cached(row) for row in self._running),
            kv_capacity=self._kv_tokens,
        )

    def run(
        self,
        arrivals: Sequence[Arrival],
        decide: Callable[[Arrival], tuple[VariantSpec, float]],
        done: Callable[[int], None],
    ) -> list[Outcome]:
        """Outcomes in order of arrival. `done` hears each answer's length, in tokens."""
        self.clock, coming = 0.0, sorted(arrivals, key=lambda a: a.at)
        order = {id(arrival): index for index, arrival in enumerate(coming)}
        outcomes: dict[int, Outcome] = {}
        while coming or self._running or self._waiting:
            if not self._running and not self._waiting:
                self.clock = max(self.clock, coming[0].at)
            while coming and coming[0].at <= self.clock:
                arrival = coming.pop(0)
                variant, loss = decide(arrival)
                self._waiting.append(_Row(arrival, variant, loss, arrival.prompt, arrival.output))
            self.clock += self._step(self.clock)
            for row in [r for r in self._running if r.output_left == 0]:
                self._running.remove(row)
                written = row.arrival.output
                tpot = (self.clock - row.first) / max(1, written - 1)
                ttft = row.first - row.arrival.at
                index = order[id(row.arrival)]
                outcomes[index] = Outcome(row.variant.name, row.loss, ttft, tpot)
                done(written)
        return [outcomes[index] for index in sorted(outcomes)]

    def _step(self, clock: float) -> float:
        """Advances every row by one step; returns its seconds."""
        while self._waiting and len(self._running) < self._max_running:
            self._running.append(self._waiting.pop(0))
        left = self._step_tokens - sum(r.prompt_left == 0 for r in self._running)
        work: list[tuple[_Row, int]] = []
        for row in self._running:
            count = min(left, row.prompt_left) if row.prompt_left else 1
            if row.prompt_left:
                left -= count
            if count:
                work.append((row, count))
        sampled = [row for row, count in work if count >= row.prompt_left]
        cached = sum(_cached(row) for row, _ in work)
        seconds = self._model.seconds([(r.variant, n) for r, n in work], len(sampled), cached)
        for row, count in work:
            row.prompt_left = max(0, row.prompt_left - count)
        for row in sampled:
            if row.output_left == row.arrival.output:
                row.first = clock + seconds
            row.output_left -= 1
        return seconds


def _cached(row: _Row) -> int:
    done = row.arrival.prompt - row.prompt_left
    return done + row.arrival.output - row.output_left


def _load_of(row: _Row, running: bool) -> SequenceLoad:
    return SequenceLoad(
        variant=row.variant,
        running=running,
        prompt_left=row.prompt_left,
        output_left=row.output_left,
        cached=_cached(row),
        cache_limit=row.arrival.prompt + row.arrival.output,
    )
