"""The engine as the HTTP side sees it: submit, iterate, cancel. The work is done in one thread."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from controller import EngineStatus, SequenceStatus, StepRecord
from pruners.variant import VariantSpec
from server.engine.admission import check
from server.engine.detokenizer import TextStream
from server.engine.runner import Failure, Runner
from server.engine.sequence import Delta, FinishReason, GenerationRequest, Sequence

log = logging.getLogger(__name__)


class QueueFullError(RuntimeError):
    """The waiting line is at its bound; try again later."""


class EngineStoppedError(RuntimeError):
    """The engine is shutting down or its thread has died."""


class Generation:
    """One submitted request, whose deltas come to an inbox, the last with a finish reason."""

    def __init__(
        self,
        sequence_of: Callable[[Callable[[Delta], None]], Sequence],
        outbox: "Outbox",
        inbox: "Inbox",
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.inbox = inbox
        self.sequence = sequence_of(lambda delta: outbox.append((self, delta)))

    def narrow(self, variant: VariantSpec) -> None:
        """Goes on with a nested variant from the next step on. Raises `ValueError`."""
        self.sequence.narrow(variant)

    def cancel(self) -> None:
        """Frees the slot within one engine step."""
        self.sequence.cancelled = True


Outbox = list[tuple[Generation, Delta]]
"""What a step wrote; filled and sent in the engine's thread."""
Inbox = asyncio.Queue[tuple[Generation, Delta]]
"""What was written for one reader; filled and read in its event loop."""


class IdleWork(Protocol):
    """What the engine does while nobody waits, in pieces no longer than a step."""

    def step(self) -> bool:
        """Does one piece; False if there was nothing to do."""
        ...

    def make_way(self) -> None:
        """Gives back what live work may need."""
        ...

    @property
    def slots(self) -> int:
        """Of the cache, that `make_way` would give back."""
        ...


class Engine:
    """Owns the engine thread. All methods may be called from any other thread.

    `failure` says why the thread died; it is None while the engine works and after `stop`.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: PreTrainedTokenizerBase,
        max_waiting: int,
        max_waiting_tokens: int,
        on_step: Callable[[StepRecord], None] | None = None,
        threads: int | None = None,
        idle: IdleWork | None = None,
        on_failure: Callable[[Failure], None] | None = None,
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._on_step = on_step
        if on_failure is not None:
            runner.on_failure = on_failure
        self._threads = threads
        self._idle = idle
        self._wake = threading.Condition()
        self._arrivals: list[Sequence] = []
        self._outbox: Outbox = []
        self._open: set[Generation] = set()
        self._stopping = False
        self._began: float | None = None
        self.failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the engine thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine can take requests."""
        return self._thread.is_alive() and not self._stopping and self.failure is None

    @property
    def stalled_seconds(self) -> float:
        """How long the step in progress has been running; 0 while there is none."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def submit(self, request: GenerationRequest, inbox: Inbox) -> Generation:
        """Queues a request of the running event loop, whose answer comes to `inbox`.

        Raises `InvalidRequestError`, `QueueFullError` or `EngineStoppedError`.
        """
        weights = self._runner.decoder.weights
        check(request, weights.shape.vocab, weights.context)

        def sequence_of(emit: Callable[[Delta], None]) -> Sequence:
            text = TextStream(self._tokenizer, request.stop, request.prompt, request.min_tokens)
            return Sequence(request, text, emit)

        with self._wake:
            if not self.alive:
                raise EngineStoppedError("the engine is not running")
            line = [*self._arrivals, *self._runner.scheduler.waiting]
            line = [sequence for sequence in line if not sequence.cancelled]
            waiting = len(line)
            free = self._runner.scheduler.limits.max_running - len(self._runner.scheduler.running)
            if waiting - max(0, free) >= self._max_waiting:
                raise QueueFullError(f"{waiting} requests are waiting, the limit is reached")
            tokens = sum(sequence.pending for sequence in line)
            if line and tokens + len(request.prompt) > self._max_waiting_tokens:
                raise QueueFullError(f"{tokens} tokens are waiting to be read, the limit is near")
            generation = Generation(sequence_of, self._outbox, inbox)
            self._open.add(generation)
            self._arrivals.append(generation.sequence)
            self._wake.notify()
        return generation

    def reusable(self, prompt: Iterable[int]) -> dict[str, int]:
        """How many tokens of a prompt need not be read again, by the names of variants."""
        return self._runner.scheduler.cache.prefixes.reusable(tuple(prompt))

    def load(self) -> EngineStatus:
        """A snapshot of the queue, the running answers and the cache."""
        scheduler = self._runner.scheduler
        borrowed = 0 if self._idle is None else self._idle.slots
        with self._wake:
            running = list(scheduler.running)
            waiting = [*scheduler.waiting, *self._arrivals]
        return EngineStatus(
            sequences=tuple(
                [_load_of(s, True) for s in running] + [_load_of(s, False) for s in waiting]
            ),
            max_running=scheduler.limits.max_running,
            step_tokens=scheduler.limits.step_tokens,
            kv_used=scheduler.cache.arena.used - scheduler.cache.prefixes.slots - borrowed,
            kv_capacity=scheduler.cache.arena.capacity,
        )

    def stop(self, join_seconds: float = 10.0) -> None:
        """Takes no more requests, ends those in flight with an error, then the thread.

        A thread whose step hangs for longer than `join_seconds` is left behind.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(join_seconds)
            if self._thread.is_alive():  # its step hangs: tell the clients without it
                self._end_all("the server is shutting down")

    def _run(self) -> None:
        """Steps until stopped. However that ends, every open request gets its last delta."""
        error = "the server is shutting down"
        try:
            if self._threads is not None:
                torch.set_num_threads(self._threads)
            while not self._stopping:
                if not self._turn():
                    with self._wake:
                        if not self._arrivals and not self._stopping:
                            self._wake.wait(timeout=0.5)
        except BaseException as found:  # nobody else would hear of it
            log.exception("the engine died")
            error = f"the engine died: {type(found).__name__}: {found}"
        with self._wake:  # no request comes in behind this
            if not self._stopping:
                self.failure = error
            self._stopping = True
        self._began = None
        self._end_all(error)

    def _turn(self) -> bool:
        """Takes what arrived and runs one step; False if there was nothing to do."""
        self._began = time.monotonic()
        with self._wake:
            if self._arrivals and self._idle is not None:
                self._idle.make_way()
            for sequence in self._arrivals:
                self._runner.scheduler.add(sequence)
            self._arrivals.clear()
        busy = self._runner.step(self._step_done) or self._use_idle_moment()
        self._send()
        self._began = None
        return busy

    def _step_done(self, record: StepRecord) -> None:
        """Tells who listens; their mistakes are not the requests'."""
        try:
            if self._on_step is not None:
                self._on_step(record)
        except Exception:
            log.exception("a listener to the engine's steps failed")

    def _end_all(self, error: str) -> None:
        """Gives every open request an error, without a look at what the runner holds."""
        self._send()
        for generation in tuple(self._open):
            generation.sequence.ended = True
            self._outbox.append((generation, Delta(finish_reason=FinishReason.ERROR, error=error)))
        self._send()

    def _send(self) -> None:
        """Wakes every event loop once for all that a step wrote."""
        written: dict[asyncio.AbstractEventLoop, Outbox] = {}
        for generation, delta in self._outbox:
            written.setdefault(generation.loop, []).append((generation, delta))
        self._outbox.clear()
        for loop, part in written.items():
            self._open.difference_update(g for g, delta in part if delta.finish_reason is not None)
            with suppress(RuntimeError):  # the loop is closed, as it may be at shutdown
                loop.call_soon_threadsafe(_deliver, part)

    def _use_idle_moment(self) -> bool:
        """A piece of idle work, unless somebody has come meanwhile."""
        if self._idle is None or self._arrivals:
            return False
        try:
            with self._runner.threads():
                return self._idle.step()
        except Exception:
            log.exception("idle work failed")
            self._idle.make_way()
            return False


def _deliver(written: Outbox) -> None:
    for generation, delta in written:
        generation.inbox.put_nowait((generation, delta))


def _load_of(sequence: Sequence, running: bool) -> SequenceStatus:
    request = sequence.request
    total = len(request.prompt) + request.max_tokens
    budget = request.kv_budget
    kept = total if budget is None else max(sequence.pending, budget.budget)
    # The engine may admit it in this moment, and then has the reusable tokens in its cache already.
    afresh = running or sequence.cache is not None or not request.takes_prefix
    reusable = 0 if afresh else request.reusable
    cache = sequence.cache  # which the engine's thread may take away meanwhile
    unread = max(0, sequence.pending - reusable)
    return SequenceStatus(
        variant=sequence.variant,
        running=running,
        prompt_left=unread if sequence.in_prompt else 0,
        output_most=request.max_tokens,
        output_left=request.max_tokens - len(sequence.output),
        cached=0 if cache is None else cache.cached,
        cache_limit=min(total, kept),
    )
