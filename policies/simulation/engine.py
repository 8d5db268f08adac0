"""The engine's queue on paper, from event to event, fast enough to learn in.

Continuous batching as the scheduler does it: every running answer gets a token a step, prompts are
read in pieces beside them, first come first served. Between events a stretch of equal decode steps
is taken at once.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from policies.simulation.rates import Rates


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """As the server's settings: answers written at once, tokens of a step, cached tokens."""

    max_running: int = 16
    step_tokens: int = 256
    kv_tokens: int = 65_536


@dataclass(slots=True)
class SimulatedRequest:
    """One request in the engine. `cached` is what its cache may come to hold, in tokens."""

    index: int
    action: int
    arrived: float
    prompt: int
    output: int
    cached: int
    expected: float = math.inf  # tokens of the answer, as predicted; `output` at most
    prompt_left: int = 0
    ends: int = 0  # the tick of its last token
    started: float = 0.0
    first: float = 0.0

    def __lt__(self, other: "SimulatedRequest") -> bool:
        return self.ends < other.ends


class SimulatedEngine:
    """Time only moves in `advance`. `done(row, clock)` hears of every finished answer.

    `slow(seconds, busy)` may stretch what a step takes: a hot host, or one that is elsewhere.
    """

    def __init__(
        self,
        rates: Rates,
        limits: EngineLimits,
        done: Callable[[SimulatedRequest, float], None],
        slow: Callable[[float, bool], float] = lambda seconds, busy: seconds,
    ) -> None:
        self.rates, self.limits = rates, limits
        self._done, self._slow = done, slow
        self.clock = 0.0
        self.kv_promised = 0
        self.waiting: deque[SimulatedRequest] = deque()
        self._reading: list[SimulatedRequest] = []  # their prompts
        self._writing: list[SimulatedRequest] = []  # a heap by their last tick
        self._waiting_seconds = 0.0  # to read the prompts of all that wait
        self._ticks = 0
        self._row_seconds = 0.0  # of all that are writing
        self._cached = 0.0  # seconds of a step to read what they have cached
        self._growth = 0.0  # of that, a tick
        self._counts = [0] * len(rates.row)
        self._stream = 0.0

    @property
    def running(self) -> int:
        """Answers that hold a slot."""
        return len(self._reading) + len(self._writing)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not (self._reading or self._writing or self.waiting)

    def submit(self, row: SimulatedRequest) -> None:
        """Queues a request that arrives now."""
        row.prompt_left = row.prompt
        row.expected = min(row.expected, row.output)
        self.kv_promised += row.cached
        self._waiting_seconds += row.prompt * self.rates.prompt[row.action]
        self.waiting.append(row)

    def advance(self, until: float) -> None:
        """Runs until the clock has come to `until`."""
        waiting, reading, writing = self.waiting, self._reading, self._writing
        while self.clock < until:
            if waiting:
                room = self.limits.max_running - len(reading) - len(writing)
                while room > 0 and waiting:
                    row = waiting.popleft()
                    row.started = self.clock
                    self._waiting_seconds -= row.prompt * self.rates.prompt[row.action]
                    reading.append(row)
                    room -= 1
            if reading:
                self._read()
            elif writing:
                self._write(until)
            else:
                if until < math.inf:
                    self._slow(until - self.clock, False)
                    self.clock = until
                return

    def finish(self) -> None:
        """Runs until nothing is left."""
        self.advance(math.inf)

    def wait(self) -> float:
        """Predicted seconds before a newcomer's prompt is read, as the controller predicts them."""
        rates, slots, waiting = self.rates, self.limits.max_running, self.waiting
        prompt, ticks = rates.prompt, self._ticks
        reading, steps = 0.0, 0.0
        # Plain loops and comparisons: this is a third of what an episode takes.
        for row in self._reading:
            reading += row.prompt_left * prompt[row.action]
            steps += row.expected
        count = self.running + len(waiting)
        if count < slots:
            return reading
        for row in self._writing:
            left = row.ends - ticks
            steps += left if left < row.expected else row.expected
        reading += self._waiting_seconds
        for row in waiting:
            steps += row.expected
        stream, each = self._stream, self._row_seconds
        if len(self._writing) < slots and (waiting or self._reading):
            first = (self._reading or waiting)[0].action
            stream = rates.stream[first] if rates.stream[first] > stream else stream
            each += (slots - len(self._writing)) * rates.row[first]
        step = stream + each + self._cached
        return step * steps * (1 - (slots - 1) / count) / slots + reading

    def decode_step(self, action: int) -> float:
        """Predicted seconds of a step that one more answer of this variant is part of."""
        rates, stream = self.rates, self._stream
        stream = rates.stream[action] if rates.stream[action] > stream else stream
        return stream + self._row_seconds + rates.row[action] + self._cached

    def _read(self) -> None:
        """One step with prompts in it."""
        rates = self.rates
        left = self.limits.step_tokens - len(self._writing)
        left = left if left > 1 else 1
        stream, seconds, ended = self._stream, self._row_seconds, []
        for row in self._reading:
            count = left if left < row.prompt_left else row.prompt_left
            if not count:
                break
            left -= count
            row.prompt_left -= count
            seconds += count * rates.prompt[row.action]
            if rates.stream[row.action] > stream:
                stream = rates.stream[row.action]
            if not row.prompt_left:
                ended.append(row)
        self.clock += self._slow(stream + seconds + self._cached, True)
        self._tick(1)
        for row in ended:
            self._reading.remove(row)
            row.first = self.clock
            row.ends = self._ticks + row.output - 1
            self._start(row)
        if self._writing and self._writing[0].ends <= self._ticks:
            self._finish()

    def _write(self, until: float) -> None:
        """Decode steps until an answer ends or the time is up."""
        step = self._stream + self._row_seconds + self._cached
        steps = self._writing[0].ends - self._ticks
        if until < math.inf:
            due = math.ceil((until - self.clock) / step)
            steps = due if due < steps else steps
        grown = self._growth * steps * (steps - 1) / 2
        self.clock += self._slow(steps * step + grown, True)
        self._tick(steps)
        if self._writing[0].ends <= self._ticks:
            self._finish()

    def _tick(self, steps: int) -> None:
        self._ticks += steps
        self._cached += steps * self._growth

    def _start(self, row: SimulatedRequest) -> None:
        heapq.heappush(self._writing, row)
        self._row_seconds += self.rates.row[row.action]
        self._cached += (row.prompt + 1) * self.rates.cached[row.action]
        self._growth += self.rates.cached[row.action]
        self._counts[row.action] += 1
        if self.rates.stream[row.action] > self._stream:
            self._stream = self.rates.stream[row.action]

    def _finish(self) -> None:
        """Takes out the answers that have ended, of which there is one at least."""
        writing, rates = self._writing, self.rates
        while writing and writing[0].ends <= self._ticks:
            row = heapq.heappop(writing)
            cached = rates.cached[row.action]
            self._row_seconds -= rates.row[row.action]
            self._cached -= (row.prompt + row.output) * cached
            self._growth -= cached
            self._counts[row.action] -= 1
            self.kv_promised -= row.cached
            if not self._counts[row.action]:
                streams = zip(self._counts, self.rates.stream, strict=True)
                self._stream = max((s for count, s in streams if count), default=0.0)
            self._done(row, self.clock)
        if not writing:
            self._row_seconds = self._cached = self._growth = 0.0
