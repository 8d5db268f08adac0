"""Which tokens the next step processes: running answers first, then prompts, in arrival order."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from pruners.variant import VariantSpec
from server.engine.cache.kv_cache import KVCache
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.sequence import Sequence
from server.engine.speculation.prompt_lookup import StepCost


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """`max_running` answers at once; `step_tokens` processed in one step, over all of them."""

    max_running: int = 16
    step_tokens: int = 256
    speculate: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """`count` tokens of one sequence, to be processed now; guesses of what follows are the last.

    `variant` computes them; `drafted` says that another made the guesses.
    """

    sequence: Sequence
    count: int
    variant: VariantSpec
    guesses: tuple[int, ...] = ()
    drafted: bool = False


class Scheduler:
    """Continuous batching with chunked prompts. Preempts by recomputing when the cache is full."""

    def __init__(self, cache: KVCache, limits: SchedulerLimits) -> None:
        self.cache = cache
        self.limits = limits
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.broken: list[tuple[Sequence, Exception]] = []  # that could not be let in
        self.preemptions = 0
        self.cost = StepCost()

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence behind the others."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, sound: bool = True) -> None:
        """Takes a sequence out, wherever it is.

        What it cached may serve later prompts, unless a failed step left it unsound.
        """
        sequence.ended = True
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence, sound)

    def take_cancelled(self) -> list[Sequence]:
        """Takes out all cancelled sequences, in one go however many wait."""
        gone = dict.fromkeys(s for s in (*self.running, *self.waiting) if s.cancelled)
        if gone:
            self.running = [s for s in self.running if s not in gone]
            self.waiting = [s for s in self.waiting if s not in gone]
        for sequence in gone:
            sequence.ended = True
            self._release(sequence)
        return list(gone)

    def _release(self, sequence: Sequence, sound: bool = True) -> None:
        cache, sequence.cache = sequence.cache, None
        if cache is None:
            return
        if sound and not sequence.narrowed:
            self.cache.prefixes.store(sequence.variant, sequence.history, cache)
        else:
            cache.close()

    def schedule(self, drafted: Mapping[Sequence, list[int]]) -> list[Work]:
        """The next step's work, with guesses of a variant where `drafted` has some.

        Room in the cache is reserved for all of it.
        """
        work: list[Work] = []
        left = self.limits.step_tokens
        preemptions = self.preemptions
        for sequence in list(self.running):
            if sequence in self.running and not sequence.in_prompt:
                given = drafted.get(sequence)
                guesses = self._guesses(sequence, left, given)
                left -= self._take(sequence, 1 + len(guesses), work, guesses, bool(given))
        for sequence in list(self.running):
            if sequence in self.running and sequence.in_prompt and left > 0:
                left -= self._take(sequence, min(left, sequence.stretch), work)
        if preemptions == self.preemptions:
            self._admit(left, work)
        # A sequence preempted after it was given work has no cache any more.
        return [item for item in work if item.sequence.cache is not None]

    def _admit(self, left: int, work: list[Work]) -> None:
        while self.waiting and len(self.running) < self.limits.max_running and left > 0:
            sequence = self.waiting[0]
            try:
                if not self._open(sequence):
                    break
            except Exception as error:
                self.broken.append((self.waiting.pop(0), error))
                continue
            sequence.started_at = sequence.started_at or time.monotonic()
            self.running.append(self.waiting.pop(0))
            count = min(left, sequence.stretch)
            work.append(Work(sequence, count, sequence.next_variant()))
            left -= count

    def _open(self, sequence: Sequence) -> bool:
        """Gives it a cache with room for its whole prompt; False while there is none.

        A newcomer never pushes out those who run.
        """
        cache = self.cache.open(sequence.request.kv_budget)
        try:
            if not cache.reserve(sequence.room) and not self._squeeze_in(sequence, cache):
                return False
            self._reuse(sequence, cache)
        except BaseException:
            cache.close()
            raise
        sequence.cache = cache
        return True

    def _squeeze_in(self, sequence: Sequence, cache: SequenceCache) -> bool:
        """With a budget, a prompt that does not fit is evicted from while it is read."""
        if cache.eviction is None:
            return False
        most = cache.eviction.budget + self.limits.step_tokens
        cache.evict_while_reading = cache.reserve(min(sequence.room, most))
        return cache.evict_while_reading

    def _reuse(self, sequence: Sequence, cache: SequenceCache) -> None:
        """Starts from what an earlier sequence cached, unless every position is asked for."""
        if sequence.request.takes_prefix and not sequence.narrowed:
            found = self.cache.prefixes.copy_longest(sequence.variant, sequence.history, cache)
            if sequence.started_at is None:  # not what it computed itself before a preemption
                sequence.reused = found

    def _guesses(self, sequence: Sequence, left: int, drafted: list[int] | None) -> tuple[int, ...]:
        request, cache = sequence.request, sequence.cache
        assert cache is not None
        rows = len(self.running)
        # The last token needs no guess behind it, and every running answer needs its own row.
        most = min(request.max_tokens - len(sequence.output) - 1, left - rows)
        if not self.limits.speculate or not cache.complete or most < 1:
            return ()
        if drafted:
            found = drafted[:most]
        else:
            found = sequence.drafts.propose(sequence.history, self.cost.share(rows), most)
        # Nobody is preempted for a guess.
        return tuple(found) if cache.reserve(1 + len(found)) else ()

    def _take(
        self,
        sequence: Sequence,
        count: int,
        work: list[Work],
        guesses: tuple[int, ...] = (),
        drafted: bool = False,
    ) -> int:
        assert sequence.cache is not None
        while not sequence.cache.reserve(count):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return 0
        work.append(Work(sequence, count, sequence.next_variant(), guesses, drafted))
        return count

    def _preempt(self, sequence: Sequence) -> None:
        sequence.restart()
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.insert(0, sequence)
        self.preemptions += 1
