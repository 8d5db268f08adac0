"""Which tokens the next step processes: running answers first, then prompts.

Who waits is admitted in the order of arrivals, and clients with keys in turn (see `FairQueue`).
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pruners.variant import VariantSpec
from server.engine.cache.kv_cache import KVCache
from server.engine.cache.prefix_cache import WantedPrefix
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.early_end import early_end
from server.engine.fair_queue import FairQueue
from server.engine.reading_depth import ReadingDepths
from server.engine.sequence import Delta, Sequence
from server.engine.speculation.forced import forced_drafts
from server.engine.speculation.step_cost import StepCost


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """At most `max_running` sequences run at once, with `step_tokens` tokens in a step together.

    `speculate` allows drafts.
    """

    max_running: int = 16
    step_tokens: int = 256
    speculate: bool = True


DraftSource = Literal["lookup", "variant", "grammar"]
"""What drafts come from: the text so far, a variant, or a grammar that leaves no choice."""


@dataclass(frozen=True, slots=True)
class ScheduledTokens:
    """`count` tokens of one sequence that the next step processes with `variant`.

    The last of them are `drafts`, guesses of what follows. `drafted_by` says who made them.
    """

    sequence: Sequence
    count: int
    variant: VariantSpec
    drafts: tuple[int, ...] = ()
    drafted_by: DraftSource = "lookup"

    @property
    def gets_token(self) -> bool:
        """Whether the step, which has not been run yet, leaves nothing to read of the sequence."""
        request = self.sequence.request
        return request.max_tokens > 0 and self.sequence.pending <= self.count


class Scheduler:
    """Continuous batching with chunked prompts. A full cache preempts by recomputing.

    Owned by the engine's thread, but for `snapshot`. `failed_admissions` are sequences that could
    not be admitted because of an error; whoever steps takes them out. `cost` is the model of what a
    decode step costs. `reading` says how deep prompts are read; by default no reader is told which
    tokens are names.
    """

    def __init__(
        self, cache: KVCache, limits: SchedulerLimits, reading: ReadingDepths | None = None
    ) -> None:
        self.cache = cache
        self.limits = limits
        self.reading = reading or ReadingDepths(cache.shape.layers)
        self.waiting = FairQueue()
        self.running: list[Sequence] = []
        self.failed_admissions: list[tuple[Sequence, Exception]] = []
        self.preemptions = 0
        self.cost = StepCost()
        self._lock = threading.Lock()  # held while a sequence is moved from list to list

    def snapshot(self) -> tuple[tuple[Sequence, ...], tuple[Sequence, ...]]:
        """Return the running and the waiting sequences of one moment. Called from any thread."""
        with self._lock:
            return tuple(self.running), tuple(self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind the others of its client."""
        with self._lock:
            self.waiting.add(sequence)

    def remove(self, sequence: Sequence, reuse_cache: bool = True) -> None:
        """Take a sequence out, wherever it is.

        With `reuse_cache` its keys and values may serve later prompts; after a failed step they may
        be wrong.
        """
        sequence.ended = True
        with self._lock:
            if sequence in self.running:
                self.running.remove(sequence)
            else:
                self.waiting.remove(sequence)
        self._release(sequence, reuse_cache)

    def reset(self) -> None:
        """Forget all sequences and all that is cached, in whatever state they are."""
        with self._lock:
            forgotten = (*self.running, *self.waiting)
            self.running, self.waiting = [], FairQueue()
        for sequence in forgotten:
            sequence.ended, sequence.cache = True, None
            sequence.publish_progress()
        self.failed_admissions.clear()
        self.cache.clear()

    def begin_step(self) -> list[tuple[Sequence, Delta]]:
        """Narrow sequences, as other threads asked for, and take out those that end early.

        Return the latter, each with its last delta.
        """
        now = time.monotonic()
        ends = [(s, end) for s in (*self.running, *self.waiting) if (end := early_end(s, now))]
        for sequence, _ in ends:
            self.remove(sequence)
        for sequence in (*self.running, *self.waiting):
            sequence.effective_variant = sequence.variant
        return ends

    def schedule(self, drafts: Mapping[Sequence, list[int]]) -> list[ScheduledTokens]:
        """Return the tokens of the next step; `drafts` are those of a variant, where it made some.

        Room in the cache is reserved for all of them.
        """
        scheduled: list[ScheduledTokens] = []
        left = self.limits.step_tokens
        preemptions = self.preemptions
        for sequence in list(self.running):
            if sequence in self.running and not sequence.in_prompt:
                left -= self._schedule_decode(sequence, left, drafts.get(sequence), scheduled)
        for sequence in list(self.running):
            if sequence in self.running and sequence.in_prompt and left > 0:
                count = min(left, sequence.max_chunk)
                if self._reserve(sequence, count):
                    scheduled.append(ScheduledTokens(sequence, count, sequence.next_variant()))
                    left -= count
        if preemptions == self.preemptions:
            self._admit(left, scheduled)
        # A sequence that was scheduled and then preempted has no cache any more.
        return [item for item in scheduled if item.sequence.cache is not None]

    def _schedule_decode(
        self,
        sequence: Sequence,
        left: int,
        drafted: list[int] | None,
        scheduled: list[ScheduledTokens],
    ) -> int:
        """Schedule the next token of an answer, with drafts behind it; return how many it takes."""
        drafts, source = self._drafts(sequence, left, drafted)
        count = 1 + len(drafts)
        if not self._reserve(sequence, count):
            return 0
        variant = sequence.next_variant()
        scheduled.append(ScheduledTokens(sequence, count, variant, tuple(drafts), source))
        return count

    def _drafts(
        self, sequence: Sequence, left: int, drafted: list[int] | None
    ) -> tuple[list[int], DraftSource]:
        """Return drafts for a sequence, of which a variant `drafted` some, and who made them."""
        request, cache = sequence.request, sequence.cache
        assert cache is not None
        rows = len(self.running)
        # The last token needs no draft behind it, and every running sequence needs a row.
        limit = min(request.max_tokens - len(sequence.output) - 1, left - rows)
        if not self.limits.speculate or not cache.complete or limit < 1:
            return [], "lookup"
        cost = self.cost.draft_cost(rows)
        source: DraftSource = "lookup"
        if drafted:
            drafts, source = drafted[:limit], "variant"
        elif drafts := forced_drafts(request.constraint, cost, limit):
            source = "grammar"
        else:
            drafts = sequence.lookup.propose(sequence.history, cost, limit)
        if request.constraint is not None:
            drafts = drafts[: request.constraint.agreed(drafts)]
        # Nothing is preempted for a draft.
        return (drafts if cache.reserve(1 + len(drafts)) else []), source

    def _reserve(self, sequence: Sequence, count: int) -> bool:
        """Make room for tokens of a sequence; return False if it had to be preempted itself."""
        assert sequence.cache is not None
        while not sequence.cache.reserve(count, must_grow=len(self.running) == 1):
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        sequence.restart()
        with self._lock:
            self.running.remove(sequence)
            self.waiting.put_back(sequence)
        self._release(sequence)
        self.preemptions += 1

    def _admit(self, left: int, scheduled: list[ScheduledTokens]) -> None:
        while self.waiting and len(self.running) < self.limits.max_running and left > 0:
            sequence = self.waiting.first()
            try:
                if not self._open_cache(sequence):
                    break
            except Exception as error:
                with self._lock:
                    self.waiting.take()
                self.failed_admissions.append((sequence, error))
                continue
            sequence.started_at = sequence.started_at or time.monotonic()
            with self._lock:
                self.running.append(self.waiting.take())
            count = min(left, sequence.max_chunk)
            scheduled.append(ScheduledTokens(sequence, count, sequence.next_variant()))
            left -= count

    def _open_cache(self, sequence: Sequence) -> bool:
        """Give a sequence a cache with room for its whole prompt; return False if there is none.

        Once there is room, its action becomes final, which may have another budget.
        """
        cache = self._reserve_to_start(sequence)
        if cache is not None and sequence.decide is not None:
            cache.close()  # the decision sees the memory without it
            sequence.settle()
            cache = self._reserve_to_start(sequence)
        if cache is None:
            return False
        try:
            self._start_reading(sequence, cache)
        except BaseException:
            cache.close()
            raise
        sequence.cache = cache
        sequence.publish_progress()
        return True

    def _reserve_to_start(self, sequence: Sequence) -> SequenceCache | None:
        """Return a cache with room for a whole prompt, or None if there is no room.

        Nothing is preempted for a sequence that waits.
        """
        cache = self.cache.open(sequence.request.kv_budget)
        alone = not self.running  # nothing else would end and make room
        fits = cache.reserve(sequence.slots_to_start) or self._reserve_budget(sequence, cache)
        fits = fits or (alone and cache.reserve(sequence.slots_to_start, must_grow=True))
        return cache if fits else None

    def _reserve_budget(self, sequence: Sequence, cache: SequenceCache) -> bool:
        """Make room for a KV budget and one step; the prompt is evicted from while it is read."""
        if cache.eviction is None:
            return False
        slots = cache.eviction.budget + self.limits.step_tokens
        cache.evict_while_reading = cache.reserve(min(sequence.slots_to_start, slots))
        return cache.evict_while_reading

    def _start_reading(self, sequence: Sequence, cache: SequenceCache) -> None:
        """Start from the prefix cache, unless every position has to be computed.

        The first time, find out how deep the rest of the prompt is read.
        """
        request, again = sequence.request, sequence.started_at is not None
        if again:
            depths = sequence.history_depths
        else:
            depths = self.reading.of(request.prompt, request.reader)
        cache.depths = depths
        copied = b""
        if request.takes_prefix and not sequence.cache_is_mixed:
            wanted = WantedPrefix(request.variant, sequence.history, depths, exact=again)
            copied = self.cache.prefixes.copy_longest(wanted, cache)
        if not again:  # after a preemption the prefix is its own
            sequence.start_reading(depths, copied)

    def _release(self, sequence: Sequence, reuse: bool = True) -> None:
        cache, sequence.cache = sequence.cache, None
        sequence.publish_progress()
        if cache is None:
            return
        if reuse and not sequence.cache_is_mixed:
            variant, depths = sequence.request.variant, sequence.history_depths
            self.cache.prefixes.store(variant, sequence.history, depths, cache)
        else:
            cache.close()
