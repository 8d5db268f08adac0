"""The engine as the HTTP side uses it: submit, read, cancel. `EngineLoop` does the work."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from typing import TYPE_CHECKING

from controller import EngineStatus
from server.engine.admission import check
from server.engine.cache.prefix_cache import Reusable
from server.engine.detokenizer import Detokenizer
from server.engine.engine_loop import EngineLoop
from server.engine.generation import Generation, Inbox
from server.engine.late_decision import Decide
from server.engine.options import EngineOptions
from server.engine.runner import Runner
from server.engine.sequence import Delta, GenerationRequest, Sequence
from server.engine.sequence_status import status_of
from server.engine.waiting_room import QueueFullError, QueuePlace, WaitingRoom

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Engine", "EngineStoppedError", "Generation", "Inbox", "QueueFullError", "QueuePlace"]


class EngineStoppedError(RuntimeError):
    """The engine takes no requests: it is shutting down, has died, or starts again."""


class Engine(EngineLoop):
    """Takes requests and says what there is. All methods may be called from any other thread.

    `_wake` guards `_room`.
    """

    def __init__(
        self, runner: Runner, tokenizer: "PreTrainedTokenizerBase", options: EngineOptions
    ) -> None:
        super().__init__(runner, options)
        self._tokenizer = tokenizer
        limits = runner.scheduler.limits
        self._room = WaitingRoom(
            options.max_waiting, options.max_waiting_tokens, limits.max_running
        )

    @property
    def open_requests(self) -> int:
        """Return how many answers wait, run, or have not been delivered to their end."""
        return len(self._open)

    def check_fits(self, answers: int, tokens: int) -> None:
        """Raise `InvalidRequestError` for a request that could not even wait if it were alone.

        `tokens` are those of the prompts of all `answers`.
        """
        self._room.check_fits(answers, tokens)

    def keep_place(self, place: QueuePlace) -> None:
        """Keep a place in the queue for a request whose prompts are still being made.

        Raises `QueueFullError` or `EngineStoppedError`.
        """
        with self._wake:
            self._check_alive()
            running, waiting = self._sequences()
            self._room.keep(place, waiting, len(running))

    def submit(
        self, request: GenerationRequest, inbox: Inbox, decide: Decide | None = None
    ) -> Generation:
        """Queue one answer, see `submit_all`."""
        return self.submit_all([request], inbox, decide)[0]

    def submit_all(
        self, requests: Many[GenerationRequest], inbox: Inbox, decide: Decide | None = None
    ) -> list[Generation]:
        """Queue all answers of a request of the running event loop, or none of them.

        What they write is put into `inbox`. `decide` may change their action when the first prompt
        is about to be read; an empty delta follows. Raises `InvalidRequestError`, `QueueFullError`
        or `EngineStoppedError`.
        """
        weights = self._runner.decoder.weights
        for request in requests:
            check(request, weights.shape.vocab, weights.context)
        if self._options.on_arrival is not None:
            self._options.on_arrival()
        openers = [self._opener(request, decide) for request in requests]
        terms = requests[0].terms
        place = QueuePlace(
            len(requests),
            sum(len(request.prompt) for request in requests),
            terms.client,
            sum(request.terms.work for request in requests),
        )
        self._room.check_fits(place.requests, place.tokens)
        with self._wake:
            self._check_alive()
            running, waiting = self._sequences()
            for sequence in self._room.make_room(place, waiting, len(running)):
                sequence.displaced = True
            generations = [Generation(opener, self._outbox, inbox) for opener in openers]
            self._open.update(generations)
            self._arrivals += [generation.sequence for generation in generations]
            self._wake.notify()
        return generations

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

    def _check_alive(self) -> None:
        if not self.alive:
            reason = "it starts again" if self._restarting else "it is not running"
            raise EngineStoppedError(f"the engine takes no requests: {reason}")

    def _opener(
        self, request: GenerationRequest, decide: Decide | None
    ) -> Callable[[Callable[[Delta], None]], Sequence]:
        """Return what opens the sequence of a request, from the function that takes its deltas."""
        depths = self._runner.scheduler.reading.of(request.prompt, request.reader)
        detokenizer = Detokenizer(self._tokenizer, request.stop, request.prompt, request.min_tokens)

        def open_sequence(emit: Callable[[Delta], None]) -> Sequence:
            sequence = Sequence(request, detokenizer, emit, decide)
            sequence.depths = depths  # an estimate, until it starts
            return sequence

        return open_sequence
