"""The engine's queue, simulated from event to event, fast enough to learn in.

Continuous batching as the scheduler does it: each running answer gets one token a step, prompts are
read in chunks beside them, first come first served. Between two events all decode steps are alike,
so that many of them are taken at once.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from policies.candidates import queue_seconds
from policies.simulation.rates import Rates
from policies.simulation.simulated_request import SimulatedRequest, WaitingSums


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """The server's settings of the same names: requests that run at once, tokens that a step
    processes, and tokens that the KV cache holds."""

    max_running: int = 16
    step_tokens: int = 256
    kv_tokens: int = 65_536


def _widest(stream: tuple[float, ...], counts: list[int]) -> float:
    """Return the largest `stream` of the variants that have a request; 0 if none has."""
    return max((s for s, count in zip(stream, counts, strict=True) if count), default=0.0)


class RunningStep(NamedTuple):
    """Seconds of a step that the running requests account for beside a new one.

    `stream` is for the weights of the widest variant, `rows` for all that is paid for each row.
    """

    stream: float
    rows: float


class SimulatedEngine:
    """A queue and a batch of requests. Time moves only in `advance`.

    With `late`, `advance` stops at each request that is about to be read, until `start` is called.
    `on_finished(request, clock)` is called for each answer that ends. `slow_down(seconds, busy)`
    returns how long a step of so many seconds really takes, for example on a hot host.
    """

    def __init__(
        self,
        rates: Rates,
        limits: EngineLimits,
        on_finished: Callable[[SimulatedRequest, float], None],
        slow_down: Callable[[float, bool], float] = lambda seconds, busy: seconds,
        late: bool = False,
    ) -> None:
        self.rates, self.limits = rates, limits
        self._late = late
        self._on_finished, self._slow_down = on_finished, slow_down
        self.clock = 0.0
        self.kv_promised = 0  # tokens that the caches of all requests may come to hold
        self.waiting: deque[SimulatedRequest] = deque()
        self.prefilling: list[SimulatedRequest] = []
        self.decoding: list[SimulatedRequest] = []  # a heap by their last step
        self._waiting = WaitingSums([0] * len(rates.row))
        self.steps_done = 0
        # Sums over the requests that decode: seconds a step, and how many there are by variant.
        self._row_seconds = 0.0
        self._cached_seconds = 0.0
        self._cached_growth = 0.0  # of the line above, in each step
        self._counts = [0] * len(rates.row)
        self._stream = 0.0

    @property
    def running(self) -> int:
        """Number of requests that are read or written."""
        return len(self.prefilling) + len(self.decoding)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not (self.prefilling or self.decoding or self.waiting)

    def submit(self, request: SimulatedRequest) -> None:
        """Queue a request that arrives now."""
        request.prompt_left = request.prompt
        request.prompt_rate = request.reading * self.rates.prompt[request.action]
        request.expected = min(request.expected, request.output)
        self.kv_promised += request.cached
        self._waiting.add(request, 1)
        self.waiting.append(request)

    def start(self, request: SimulatedRequest, action: int, reading: float, cached: int) -> None:
        """Begin to read a request that `advance` returned, by a choice that is final now.

        See `SimulatedRequest` for `action`, `reading` and `cached`.
        """
        self.kv_promised += cached - request.cached
        request.action, request.reading, request.cached = action, reading, cached
        request.prompt_rate = reading * self.rates.prompt[action]
        request.started = self.clock
        self.prefilling.append(request)

    def advance(self, until: float) -> SimulatedRequest | None:
        """Run until the clock has come to `until`, in seconds. A step that has begun is ended.

        Return a request that is about to be read before that, if the engine decides `late`.
        """
        waiting, prefilling, decoding = self.waiting, self.prefilling, self.decoding
        while self.clock < until:
            if waiting and self.running < self.limits.max_running:
                request = self._next_waiting()
                if self._late:
                    return request
                self.start(request, request.action, request.reading, request.cached)
            elif prefilling:
                self._prefill_step()
            elif decoding:
                self._decode_steps(until)
            else:
                if until < math.inf:
                    self._slow_down(until - self.clock, False)
                    self.clock = until
                return None
        return None

    def finish(self) -> SimulatedRequest | None:
        """Run until nothing is left. See `advance`."""
        return self.advance(math.inf)

    def predict_wait(self, running: RunningStep) -> float:
        """Return the seconds in the queue predicted for a new request, as the controller does."""
        # Sums, plain loops and comparisons: this is a good part of the time of an episode.
        rates, slots, waiting = self.rates, self.limits.max_running, self._waiting
        seconds, tokens, row_steps = waiting.seconds, waiting.tokens, waiting.expected
        widest = _widest(rates.stream, waiting.counts) if tokens else 0.0
        for request in self.prefilling:
            seconds += request.prompt_left * request.prompt_rate
            tokens += request.prompt_left
            row_steps += request.expected
        reading = self._read_seconds(running, widest, tokens, seconds)
        count = self.running + len(self.waiting)
        if count < slots:
            return reading
        done = self.steps_done
        for request in self.decoding:
            left = request.last_step - done
            row_steps += left if left < request.expected else request.expected
        stream, rows = self._running_sums()
        for request in islice(self.waiting, max(0, slots - self.running)):
            action = request.action
            stream = rates.stream[action] if rates.stream[action] > stream else stream
            rows += rates.row[action]
        return queue_seconds(count, slots, row_steps, stream + rows) + reading

    def predict_reading(self, running: RunningStep) -> float:
        """Return the seconds predicted to read the prompts that are being read."""
        tokens, seconds = 0, 0.0
        for request in self.prefilling:
            tokens += request.prompt_left
            seconds += request.prompt_left * request.prompt_rate
        return self._read_seconds(running, 0.0, tokens, seconds)

    def running_step(self) -> RunningStep:
        """Return what a step takes for the running requests, one less where no slot is free."""
        stream, rows = self._running_sums()
        if self.running >= self.limits.max_running:
            rows *= (self.limits.max_running - 1) / self.running
        return RunningStep(stream, rows)

    def _running_sums(self) -> tuple[float, float]:
        """Return `stream` and `rows` of a `RunningStep` for all running requests."""
        rates = self.rates
        stream, rows = self._stream, self._row_seconds + self._cached_seconds
        for request in self.prefilling:
            action, read = request.action, request.prompt - request.prompt_left
            stream = rates.stream[action] if rates.stream[action] > stream else stream
            rows += rates.row[action] + read * rates.cached[action]
        return stream, rows

    def predict_prefill(
        self, running: RunningStep, action: int, tokens: int, reading: float = 1.0
    ) -> float:
        """Return the seconds predicted to read a prompt of `tokens` beside what runs.

        `reading` is the time of reading over that in full.
        """
        seconds = reading * tokens * self.rates.prompt[action]
        return self._read_seconds(running, self.rates.stream[action], tokens, seconds)

    def predict_decode_step(self, running: RunningStep, action: int) -> float:
        """Return the seconds of a decode step with one more row, without the cache of this row."""
        stream = self.rates.stream[action]
        widest = stream if stream > running.stream else running.stream
        return widest + running.rows + self.rates.row[action]

    def _read_seconds(
        self, running: RunningStep, stream: float, tokens: int, seconds: float
    ) -> float:
        """Return the time of the steps that read `tokens`, which alone take `seconds`."""
        steps = -(-tokens // self.limits.step_tokens)
        widest = stream if stream > running.stream else running.stream
        return steps * (widest + running.rows) + seconds

    def _next_waiting(self) -> SimulatedRequest:
        """Remove the request that waits first, and return it."""
        request = self.waiting.popleft()
        self._waiting.add(request, -1)
        if not self.waiting:
            self._waiting.seconds = self._waiting.expected = 0.0  # rounding errors do not add up
        return request

    def _prefill_step(self) -> None:
        """Take one step that reads prompts."""
        rates = self.rates
        left = self.limits.step_tokens - len(self.decoding)
        left = left if left > 1 else 1
        stream, seconds, read = self._stream, self._row_seconds, []
        for request in self.prefilling:
            count = left if left < request.prompt_left else request.prompt_left
            if not count:
                break
            left -= count
            request.prompt_left -= count
            seconds += count * request.prompt_rate
            if rates.stream[request.action] > stream:
                stream = rates.stream[request.action]
            if not request.prompt_left:
                read.append(request)
        self.clock += self._slow_down(stream + seconds + self._cached_seconds, True)
        self._count_steps(1)
        for request in read:
            self.prefilling.remove(request)
            request.first_token = self.clock
            request.last_step = self.steps_done + request.output - 1
            self._start_decoding(request)
        if self.decoding and self.decoding[0].last_step <= self.steps_done:
            self._remove_finished()

    def _decode_steps(self, until: float) -> None:
        """Take decode steps until an answer ends or the clock has come to `until`."""
        step = self._stream + self._row_seconds + self._cached_seconds
        steps = self.decoding[0].last_step - self.steps_done
        if until < math.inf:
            due = math.ceil((until - self.clock) / step)
            steps = due if due < steps else steps
        # The caches grow by a token a step: an arithmetic series.
        growth = self._cached_growth * steps * (steps - 1) / 2
        self.clock += self._slow_down(steps * step + growth, True)
        self._count_steps(steps)
        if self.decoding[0].last_step <= self.steps_done:
            self._remove_finished()

    def _count_steps(self, steps: int) -> None:
        self.steps_done += steps
        self._cached_seconds += steps * self._cached_growth

    def _start_decoding(self, request: SimulatedRequest) -> None:
        heapq.heappush(self.decoding, request)
        action, rates = request.action, self.rates
        self._row_seconds += rates.row[action]
        self._cached_seconds += (request.prompt + 1) * rates.cached[action]
        self._cached_growth += rates.cached[action]
        self._counts[action] += 1
        if rates.stream[action] > self._stream:
            self._stream = rates.stream[action]

    def _remove_finished(self) -> None:
        """Remove the answers that have ended, of which there is at least one."""
        decoding, rates = self.decoding, self.rates
        while decoding and decoding[0].last_step <= self.steps_done:
            request = heapq.heappop(decoding)
            cached = rates.cached[request.action]
            self._row_seconds -= rates.row[request.action]
            self._cached_seconds -= (request.prompt + request.output) * cached
            self._cached_growth -= cached
            self._counts[request.action] -= 1
            self.kv_promised -= request.cached
            if not self._counts[request.action]:
                self._stream = _widest(rates.stream, self._counts)
            self._on_finished(request, self.clock)
        if not decoding:
            self._row_seconds = self._cached_seconds = self._cached_growth = 0.0
