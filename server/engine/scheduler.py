"""Which tokens the next step processes: running answers first, then prompts, in arrival order."""

import time
from dataclasses import dataclass

from server.engine.kv_cache import KVCache
from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """`max_running` answers at once; `step_tokens` processed in one step, over all of them."""

    max_running: int = 16
    step_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Work:
    """`count` tokens of one sequence, to be processed now."""

    sequence: Sequence
    count: int


class Scheduler:
    """Continuous batching with chunked prompts. Preempts by recomputing when the cache is full."""

    def __init__(self, cache: KVCache, limits: SchedulerLimits) -> None:
        self.cache = cache
        self.limits = limits
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence behind the others."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its cache."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.cache is not None:
            sequence.cache.close()
            sequence.cache = None

    def schedule(self) -> list[Work]:
        """The next step's work. Room in the cache is reserved for all of it."""
        work: list[Work] = []
        left = self.limits.step_tokens
        preemptions = self.preemptions
        for sequence in list(self.running):
            if sequence in self.running and not sequence.in_prompt:
                left -= self._take(sequence, 1, work)
        for sequence in list(self.running):
            if sequence in self.running and sequence.in_prompt and left > 0:
                left -= self._take(sequence, min(left, sequence.pending), work)
        if preemptions == self.preemptions:
            self._admit(left, work)
        # A sequence preempted after it was given work has no cache any more.
        return [item for item in work if item.sequence.cache is not None]

    def _admit(self, left: int, work: list[Work]) -> None:
        while self.waiting and len(self.running) < self.limits.max_running and left > 0:
            sequence = self.waiting[0]
            cache = self.cache.open(self.limits.step_tokens, sequence.request.kv_budget)
            # Room for the whole prompt, or wait: a newcomer never pushes out those who run.
            if not cache.reserve(sequence.pending):
                break
            sequence.cache = cache
            sequence.started_at = sequence.started_at or time.monotonic()
            self.running.append(self.waiting.pop(0))
            count = min(left, sequence.pending)
            work.append(Work(sequence, count))
            left -= count

    def _take(self, sequence: Sequence, count: int, work: list[Work]) -> int:
        assert sequence.cache is not None
        while not sequence.cache.reserve(count):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return 0
        work.append(Work(sequence, count))
        return count

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        self.waiting.insert(0, sequence)
        self.preemptions += 1
