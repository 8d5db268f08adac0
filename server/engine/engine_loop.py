"""The engine's thread: it steps until it is stopped, and starts again when it broke."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import torch

from controller import StepRecord
from server.engine.generation import Generation, Outbox, send
from server.engine.options import EngineOptions
from server.engine.recovery import RestartBudget
from server.engine.runner import Runner
from server.engine.sequence import Delta, FinishReason, Sequence
from server.engine.step_actions import StepActions

log = logging.getLogger(__name__)


class EngineLoop:
    """Owns the engine's thread. All public methods may be called from any other thread.

    The engine's thread owns the runner, the scheduler, the sequences and the cache. Other threads
    hand over new requests in `_arrivals` and read snapshots: `Scheduler.snapshot`,
    `Sequence.progress`, and the tuple of entries in the prefix cache. `_wake` guards `_arrivals`,
    `_open`, `_stopping` and `_restarting`. Deltas go to the readers' event loops by
    `call_soon_threadsafe`.

    What breaks the engine as a whole ends all requests, and it starts again with an empty cache, a
    few times. `failure` says why it does not any more; it is None while the engine works and after
    `stop`. The thread calls what is added to `between_steps`, within half a second if it is idle.
    """

    def __init__(self, runner: Runner, options: EngineOptions) -> None:
        self._runner = runner
        self._options = options
        if options.on_failure is not None:
            runner.on_failure = options.on_failure
        self._idle_work = options.idle_work
        self._wake = threading.Condition()
        self._arrivals: list[Sequence] = []
        self._outbox: Outbox = []
        self._open: set[Generation] = set()
        self._stopping = self._restarting = False
        self._budget = RestartBudget()
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
        ending = self._stopping or self._restarting or self.failure is not None
        return self._thread.is_alive() and not ending

    @property
    def restarting(self) -> bool:
        """Return whether the engine broke and is about to start again."""
        return self._restarting

    @property
    def stalled_seconds(self) -> float:
        """Return how long the step in progress has been running; 0 if there is none."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

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

    def _run(self) -> None:
        """Step until stopped. However that ends, every open request gets its last delta."""
        if self._options.threads is not None:
            torch.set_num_threads(self._options.threads)
        message = self._unless_broken(self._step_until_stopped)
        while message is not None and self._pause(message):
            message = self._unless_broken(self._begin_again)
            message = message or self._unless_broken(self._step_until_stopped)
        with self._wake:  # no request comes in after this
            if not self._stopping:
                self.failure = message
            self._stopping, self._restarting = True, False
        self._step_started = None
        self.between_steps.close()
        self._end_all(message or "the server is shutting down")

    def _unless_broken(self, work: Callable[[], None]) -> str | None:
        """Call `work`; return what broke the engine as a whole, None if nothing did."""
        try:
            work()
        except BaseException as error:  # whatever it is, nobody else would report it
            log.exception("the engine broke")
            return f"the engine died: {type(error).__name__}: {error}"
        return None

    def _step_until_stopped(self) -> None:
        while not self._stopping:
            if not self._step():
                with self._wake:
                    if not self._arrivals and not self._stopping:
                        self._wake.wait(timeout=0.5)

    def _pause(self, message: str) -> bool:
        """End all requests and wait; return whether the engine may start again."""
        seconds = self._budget.take()
        if seconds is None or self._stopping:
            return False
        with self._wake:
            self._restarting = True
            self._arrivals.clear()
        self._step_started = None
        self._end_all(message)
        log.warning("the engine starts again in %g s", seconds)
        if self._options.on_failure is not None:
            self._options.on_failure("engine")
        with self._wake:
            return not self._wake.wait_for(lambda: self._stopping, seconds)

    def _begin_again(self) -> None:
        """Start with an empty cache. Raises what the decoder raises if it is still broken."""
        if self._idle_work is not None:
            with suppress(Exception):  # what it holds is forgotten now in any case
                self._idle_work.make_way()
        self._runner.reset()
        with self._wake:
            self._restarting = False
        log.warning("the engine is back")

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
        """Send what a step wrote to the readers."""
        ended = [g for g, delta in self._outbox if delta.finish_reason is not None]
        if ended:
            with self._wake:
                self._open.difference_update(ended)
        send(self._outbox)
        self._outbox.clear()

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
