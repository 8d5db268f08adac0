"""Quality measured in production: a share of answers is checked while the engine is idle."""

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from policies import Action
from pruners.variant import BASE, VariantSpec
from server.engine.backends.base import Decoder
from server.engine.cache.arena import GRANULARITY
from server.shadow.teacher_forcing import ForcedModel, TeacherForcedLoss, TeacherForcing

_MAX_QUEUED = 64  # answers that wait for an idle moment; the oldest are dropped


@dataclass(frozen=True, slots=True)
class FinishedAnswer:
    """An answer that one variant wrote throughout, without a KV budget.

    `answer_id` is unique. `prompt` and `output` are token ids. The prompt was read by `reader`
    (None: in full), its tokens as deep as `depths` says, one byte each (see `ReadingDepths`).
    """

    answer_id: str
    variant: VariantSpec
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    reader: str | None = None
    depths: bytes = b""

    @property
    def choice(self) -> str:
        """Variant and reader as text, as `Action.choice` has it."""
        return Action(self.variant.name, None, self.reader).choice


OnResult = Callable[[FinishedAnswer, TeacherForcedLoss], None]


class ShadowMonitor:
    """Chooses a `share` of the answers that were not the base's alone, and measures their loss.

    Answers come from any thread, by `offer`. All else is called by the engine's thread, in its
    idle moments; `on_result` is, too.
    """

    def __init__(
        self, decoder: Decoder, base: VariantSpec, share: float, seed: int | None = None
    ) -> None:
        self._decoder = decoder
        self._base = base
        self._share = share
        self._random = random.Random(seed)
        self._lock = threading.Lock()  # over the queue
        self._queue: deque[tuple[FinishedAnswer, OnResult]] = deque(maxlen=_MAX_QUEUED)
        self._current: tuple[FinishedAnswer, OnResult, TeacherForcing] | None = None

    def offer(self, answer: FinishedAnswer, on_result: OnResult) -> None:
        """Queue an answer if it is chosen. The engine's thread calls `on_result` with its loss."""
        if answer.choice == BASE or len(answer.output) < 2:
            return
        if self._random.random() < self._share:
            with self._lock:
                self._queue.append((answer, on_result))

    def step(self) -> bool:
        """Run one small step of a check. Return False if there is nothing to check."""
        if self._current is None:
            with self._lock:
                if not self._queue:
                    return False
                answer, on_result = self._queue.popleft()
            # Cached prefixes are worth more than the loss of one answer: none is evicted for it.
            needed = 2 * (len(answer.prompt) + len(answer.output) + GRANULARITY)
            arena = self._decoder.cache.arena
            if arena.used + needed > arena.capacity:
                return True
            forced = ForcedModel(answer.variant, answer.depths)
            check = TeacherForcing(
                self._decoder, answer.prompt, answer.output, self._base, (forced,)
            )
            self._current = answer, on_result, check
        answer, on_result, check = self._current
        unfinished = False
        try:
            unfinished = check.advance()
            losses = [] if unfinished else check.losses()
        finally:
            if not unfinished:
                check.close()
                self._current = None
        if losses:
            on_result(answer, losses[0])
        return True

    @property
    def slots(self) -> int:
        """The number of cache slots that `make_way` would free."""
        current = self._current
        return 0 if current is None else current[2].slots

    def make_way(self) -> None:
        """Free the cache for live requests. The check starts again later."""
        if self._current is not None:
            answer, on_result, check = self._current
            check.close()
            self._current = None
            with self._lock:
                if len(self._queue) < _MAX_QUEUED:
                    self._queue.appendleft((answer, on_result))
