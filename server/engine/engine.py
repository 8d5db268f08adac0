"""The engine as the HTTP side uses it: submit, read, cancel. One thread does the work."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import torch

from controller import EngineStatus, StepRecord
from pruners.variant import VariantSpec
from server.engine.admission import check
from server.engine.cache.prefix_cache import Reusable
from server.engine.detokenizer import Detokenizer
from server.engine.late_decision import Decide
from server.engine.options import EngineOptions
from server.engine.runner import Runner
from server.engine.sequence import Delta, FinishReason, GenerationRequest, Sequence
from server.engine.sequence_status import status_of
from server.engine.step_actions import StepActions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class QueueFullError(RuntimeError):
    """Too many requests or tokens wait already; try again later."""


class EngineStoppedError(RuntimeError):
    """The engine is shutting down or its thread has died."""


class Generation:
    """One submitted request. Its deltas are put into `inbox`, the last with a finish reason."""

    def __init__(
        self,
        open_sequence: Callable[[Callable[[Delta], None]], Sequence],
        outbox: "Outbox",
        inbox: "Inbox",
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.inbox = inbox
        self.sequence = open_sequence(lambda delta: outbox.append((self, delta)))

    def narrow(self, variant: VariantSpec) -> None:
        """Go on with a nested variant from the next step on. Raises `ValueError` for others."""
        self.sequence.narrow(variant)

    def cancel(self) -> None:
        """End the request; its memory is free within one step of the engine."""
        self.sequence.cancelled = True


Outbox = list[tuple[Generation, Delta]]
"""What a step wrote. Filled and sent in the engine's thread."""
Inbox = asyncio.Queue[tuple[Generation, Delta]]
"""What was written for one reader. Filled and read in its event loop."""


class Engine:
    """Owns the engine's thread. All methods may be called from any other thread.

    The engine's thread owns the runner, the scheduler, the sequences and the cache. Other threads
    hand over new requests in `_arrivals` and read snapshots: `Scheduler.snapshot`,
    `Sequence.progress`, and the tuple of entries in the prefix cache. `_wake` guards `_arrivals`,
    `_open` and `_stopping`. Deltas go to the readers' event loops by `call_soon_threadsafe`.

    `failure` says why the thread died; it is None while the engine works and after `stop`. The
    thread calls what is added to `between_steps`, within half a second if it is idle.
    """

    def __init__(
        self, runner: Runner, tokenizer: "PreTrainedTokenizerBase", options: EngineOptions
    ) -> None:
        self._runner = runner
        self._tokenizer = tokenizer
        self._options = options
        if options.on_failure is not None:
            runner.on_failure = options.on_failure
        self._idle_work = options.idle_work
        self._wake = threading.Condition()
        self._arrivals: list[Sequence] = []
        self._outbox: Outbox = []
        self._open: set[Generation] = set()
        self._stopping = False
        self._step_started: float | None = None
        self.failure: str | None = None
        self.between_steps = StepActions()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether the engine can take requests."""
        return self._thread.is_alive() and not self._stopping and self.failure is None

    @property
    def stalled_seconds(self) -> float:
        """Return how long the step in progress has been running; 0 if there is none."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

    @property
    def open_requests(self) -> int:
        """Return how many answers wait, run, or have not been delivered to their end."""
        return len(self._open)

    def submit(
        self, request: GenerationRequest, inbox: Inbox, decide: Decide | None = None
    ) -> Generation:
        """Queue a request of the running event loop; its answer is put into `inbox`.

        `decide` may change its action when its prompt is about to be read. An empty delta follows.
        Raises `InvalidRequestError`, `QueueFullError` or `EngineStoppedError`.
        """
        weights = self._runner.decoder.weights
        check(request, weights.shape.vocab, weights.context)
        if self._options.on_arrival is not None:
            self._options.on_arrival()
        depths = self._runner.scheduler.reading.of(request.prompt, request.reader)

        def open_sequence(emit: Callable[[Delta], None]) -> Sequence:
            detokenizer = Detokenizer(
                self._tokenizer, request.stop, request.prompt, request.min_tokens
            )
            sequence = Sequence(request, detokenizer, emit, decide)
            sequence.depths = depths  # an estimate, until it starts
            return sequence

        with self._wake:
            if not self.alive:
                raise EngineStoppedError("the engine is not running")
            self._check_queue(len(request.prompt))
            generation = Generation(open_sequence, self._outbox, inbox)
            self._open.add(generation)
            self._arrivals.append(generation.sequence)
            self._wake.notify()
        return generation

    def reusable(self, prompt: Iterable[int]) -> Reusable:
        """Return how many tokens of a prompt need not be read, since the prefix cache has them.

        A reader may start from what was read as deep or deeper, so it has as many as reading in
        full or more. What is left out has none.
        """
        scheduler = self._runner.scheduler
        return scheduler.cache.prefixes.reusable(tuple(prompt), scheduler.reading)

    def status(self, deciding: Decide | None = None) -> EngineStatus:
        """Return a snapshot of the queue, the running answers and the cache.

        The answers that wait for `deciding` to choose their action are left out.
        """
        scheduler, cache = self._runner.scheduler, self._runner.scheduler.cache
        running, waiting = self._sequences()
        if deciding is not None:
            waiting = tuple(one for one in waiting if one.decide is not deciding)
        used, capacity = cache.arena.used - cache.prefixes.slots, cache.attainable()
        if self._idle_work is not None:
            used -= self._idle_work.slots
        return EngineStatus(
            sequences=tuple(
                [status_of(s, True) for s in running] + [status_of(s, False) for s in waiting]
            ),
            max_running=scheduler.limits.max_running,
            step_tokens=scheduler.limits.step_tokens,
            kv_used=min(max(0, used), capacity),  # the terms may be a moment apart
            kv_capacity=capacity,
        )

    def stop(self, join_seconds: float = 10.0) -> None:
        """Take no more requests, end those in flight with an error, then the thread.

        A thread whose step hangs for longer than `join_seconds` is left behind.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(join_seconds)
            if self._thread.is_alive():  # its step hangs: tell the clients without it
                self._end_all("the server is shutting down")

    def _sequences(self) -> tuple[tuple[Sequence, ...], tuple[Sequence, ...]]:
        """Return the running and the waiting sequences of one moment."""
        with self._wake:  # while it is held no arrival is handed to the scheduler
            running, waiting = self._runner.scheduler.snapshot()
            return running, (*waiting, *self._arrivals)

    def _check_queue(self, tokens: int) -> None:
        """Raise `QueueFullError` if one more prompt of `tokens` tokens may not wait."""
        running, waiting = self._sequences()
        waiting = tuple(sequence for sequence in waiting if not sequence.cancelled)
        free = self._runner.scheduler.limits.max_running - len(running)
        if len(waiting) - max(0, free) >= self._options.max_waiting:
            raise QueueFullError(f"{len(waiting)} requests are waiting, the limit is reached")
        queued = sum(sequence.progress.pending for sequence in waiting)
        if waiting and queued + tokens > self._options.max_waiting_tokens:
            raise QueueFullError(f"{queued} tokens are waiting to be read, the limit is near")

    def _run(self) -> None:
        """Step until stopped. However that ends, every open request gets its last delta."""
        message = "the server is shutting down"
        try:
            if self._options.threads is not None:
                torch.set_num_threads(self._options.threads)
            while not self._stopping:
                if not self._step():
                    with self._wake:
                        if not self._arrivals and not self._stopping:
                            self._wake.wait(timeout=0.5)
        except BaseException as error:  # the thread ends here: nobody else would report it
            log.exception("the engine died")
            message = f"the engine died: {type(error).__name__}: {error}"
        with self._wake:  # no request comes in after this
            if not self._stopping:
                self.failure = message
            self._stopping = True
        self._step_started = None
        self.between_steps.close()
        self._end_all(message)

    def _step(self) -> bool:
        """Take the arrivals and run one step; return False if there was nothing to do."""
        self._step_started = time.monotonic()
        with self._wake:
            if self._arrivals and self._idle_work is not None:
                self._idle_work.make_way()
            for sequence in self._arrivals:
                self._runner.scheduler.add(sequence)
            self._arrivals.clear()
        if self._options.relief is not None:
            self._options.relief.check()
        self.between_steps.run()
        busy = self._runner.step(self._notify_step) or self._use_idle_moment()
        self._send()
        self._step_started = None
        return busy

    def _notify_step(self, record: StepRecord) -> None:
        """Call `on_step`. Its errors do not end requests."""
        try:
            if self._options.on_step is not None:
                self._options.on_step(record)
        except Exception:
            log.exception("a listener to the engine's steps failed")

    def _end_all(self, message: str) -> None:
        """Give every open request an error, whatever state the runner is in."""
        self._send()
        with self._wake:
            remaining = tuple(self._open)
        for generation in remaining:
            generation.sequence.ended = True
            last = Delta(finish_reason=FinishReason.ERROR, error=message)
            self._outbox.append((generation, last))
        self._send()

    def _send(self) -> None:
        """Send what a step wrote, with one wake-up of each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, Outbox] = {}
        for generation, delta in self._outbox:
            by_loop.setdefault(generation.loop, []).append((generation, delta))
        self._outbox.clear()
        for loop, deltas in by_loop.items():
            ended = [g for g, delta in deltas if delta.finish_reason is not None]
            if ended:
                with self._wake:
                    self._open.difference_update(ended)
            with suppress(RuntimeError):  # the loop is closed, as it may be at shutdown
                loop.call_soon_threadsafe(_deliver, deltas)

    def _use_idle_moment(self) -> bool:
        """Do a piece of idle work, unless a request has come meanwhile."""
        if self._idle_work is None or self._arrivals:
            return False
        try:
            with self._runner.threads():
                return self._idle_work.step()
        except Exception:
            log.exception("idle work failed")
            self._idle_work.make_way()
            return False


def _deliver(deltas: Outbox) -> None:
    for generation, delta in deltas:
        generation.inbox.put_nowait((generation, delta))
