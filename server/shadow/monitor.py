"""Quality watched in production: a share of answers is read again while nobody waits."""

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pruners.variant import BASE, VariantSpec
from server.engine.cache.arena import GRAIN
from server.engine.loading.load import AnyDecoder
from server.shadow.teacher_forcing import Reread, Rereading

_WAITING = 64
"""Answers kept for an idle moment; older ones make way."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer as it was given, by one variant throughout and without a KV budget.

    `answer_id` is no other answer's.
    """

    answer_id: str
    variant: VariantSpec
    prompt: tuple[int, ...]
    output: tuple[int, ...]


class Shadow:
    """Chooses answers as they end, and reads them again in the engine's idle moments.

    `share` of the answers that were not the base's are chosen. `found` hears of each result, in
    the engine's thread.
    """

    def __init__(
        self,
        decoder: AnyDecoder,
        base: VariantSpec,
        share: float,
        found: Callable[[Answered, Reread], None],
        seed: int | None = None,
    ) -> None:
        self._decoder = decoder
        self._base = base
        self._share = share
        self._found = found
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._line: deque[Answered] = deque(maxlen=_WAITING)
        self._current: tuple[Answered, Rereading] | None = None

    def offer(self, answer: Answered) -> None:
        """May choose an answer that has just ended. Called from any thread."""
        if answer.variant.name == BASE or len(answer.output) < 2:
            return
        if self._random.random() < self._share:
            with self._lock:
                self._line.append(answer)

    def step(self) -> bool:
        """Reads one small piece; False if there is nothing to read. In the engine's thread."""
        if self._current is None:
            with self._lock:
                if not self._line:
                    return False
                answer = self._line.popleft()
            # What earlier prompts left in the cache is worth more than knowing one answer's loss.
            needed = 2 * (len(answer.prompt) + len(answer.output) + GRAIN)
            arena = self._decoder.cache.arena
            if arena.used + needed > arena.capacity:
                return True
            reading = Rereading(
                self._decoder, answer.prompt, answer.output, self._base, (answer.variant,)
            )
            self._current = answer, reading
        answer, reading = self._current
        going_on = False
        try:
            going_on = reading.advance()
            result = reading.result()
        finally:
            if not going_on:
                reading.close()
                self._current = None
        if going_on:
            return True
        if result:
            self._found(answer, result[0])
        return True

    @property
    def slots(self) -> int:
        """Of the cache, that are given back when somebody waits."""
        current = self._current
        return 0 if current is None else current[1].slots

    def make_way(self) -> None:
        """Somebody waits: what is being read gives its memory back and starts again later."""
        if self._current is not None:
            answer, reading = self._current
            reading.close()
            self._current = None
            with self._lock:
                if len(self._line) < _WAITING:
                    self._line.appendleft(answer)
