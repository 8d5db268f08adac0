"""Drafts by a variant, which the base verifies: lossless, from one cache.

Self-speculative decoding (Zhang et al. 2023, arXiv 2309.08168). The variant writes its keys and
values where the base's will be: verifying overwrites them.
"""

import time
from collections.abc import Callable, Mapping

from controller import StepRecord
from pruners.artefact.table import Table
from pruners.variant import BASE, VariantSpec
from server.engine.backends.base import Decoder, Segment
from server.engine.sampling import SamplingError
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.speculation.step_cost import MIN_GAIN, best_draft_count, updated_acceptance

_PROBE_INTERVAL = 64  # steps between single drafts while drafts do not pay
_WEIGHT = 0.05  # of one draft in the moving average of the acceptance
_VERIFY_COST = 0.1  # over the cost of a step, assumed before any was measured

StepListener = Callable[[StepRecord], None]


class Drafter:
    """Lets a variant draft tokens for the base's sequences, as long as that pays.

    `agreement` is the share of the variant's likeliest tokens that are expected to be the base's,
    before any draft was verified; `cost` is the time of its step over the base's.
    """

    def __init__(self, variant: VariantSpec, agreement: float, cost: float) -> None:
        self.variant = variant
        self._acceptance = agreement
        self._cost = cost
        self._since_draft = 0

    def draft(
        self, decoder: Decoder, scheduler: Scheduler, on_step: StepListener | None
    ) -> dict[Sequence, list[int]]:
        """Return drafts for running sequences; none while a sequence waits or reads its prompt.

        `on_step` is called after each of the variant's steps. The sequences' caches have room for
        the drafts, and are as before otherwise. Raises whatever the decoder raises.
        """
        if not scheduler.limits.speculate or scheduler.waiting:
            return {}
        if any(sequence.in_prompt for sequence in scheduler.running):
            return {}
        verify_cost = scheduler.cost.draft_cost(len(scheduler.running))
        sequences = [s for s in scheduler.running if self.suits(s, verify_cost)]
        count = self.draft_count(verify_cost) if sequences else 0
        caches = {s: s.cache for s in sequences if s.cache is not None}
        caches = {s: cache for s, cache in caches.items() if cache.reserve(count + 1)}
        drafts: dict[Sequence, list[int]] = {sequence: [] for sequence in caches}
        before = {sequence: cache.processed for sequence, cache in caches.items()}
        try:
            for _ in range(count if drafts else 0):
                self._draft_one(decoder, drafts, on_step)
        finally:
            for sequence, cache in caches.items():
                cache.rewind(cache.processed - before[sequence])
        return drafts

    def record_verified(self, proposed: int, accepted: int) -> None:
        """Update the acceptance after drafts of one sequence were verified."""
        self._acceptance = updated_acceptance(self._acceptance, proposed, accepted, _WEIGHT)

    def suits(self, sequence: Sequence, verify_cost: float) -> bool:
        """Return whether the base writes likeliest tokens, and prompt lookup has no drafts.

        A constraint has drafts of its own, and a variant would not know of it.
        """
        cache = sequence.cache
        return (
            sequence.request.sampling.greedy
            and sequence.request.constraint is None
            and not sequence.needs_logits(len(sequence.output))
            and sequence.effective_variant.name == BASE
            and cache is not None
            and cache.complete
            and not sequence.lookup.pays(sequence.history, verify_cost)
        )

    def draft_count(self, verify_cost: float) -> int:
        """Return how many drafts to make now; now and then one, while they do not pay."""
        count = best_draft_count(self._acceptance, verify_cost, self._cost)[1]
        self._since_draft = 0 if count else self._since_draft + 1
        return 1 if self._since_draft and self._since_draft % _PROBE_INTERVAL == 0 else count

    def _draft_one(
        self, decoder: Decoder, drafts: dict[Sequence, list[int]], on_step: StepListener | None
    ) -> None:
        """Append one more token to the drafts of each sequence."""
        started = time.perf_counter()
        segments = []
        for sequence, tokens in drafts.items():
            assert sequence.cache is not None
            latest = (tokens or sequence.history)[-1]
            segments.append(Segment([latest], sequence.cache, self.variant))
        likeliest = decoder.argmax(decoder.forward(segments))
        if min(likeliest) < 0:
            raise SamplingError
        for tokens, token in zip(drafts.values(), likeliest, strict=True):
            tokens.append(token)
        if on_step is not None:
            cached = sum(segment.cache.cached for segment in segments)
            rows = ((self.variant, len(segments), cached),)
            on_step(StepRecord(time.perf_counter() - started, rows, len(segments)))


def choose_drafter(variants: Mapping[str, VariantSpec], table: Table) -> Drafter | None:
    """Return a drafter for the variant that gains most, or None if none gains enough.

    The gain is computed from the measured agreement and the bytes that a step reads.
    """
    gains = {
        name: best_draft_count(quality.agreement, _VERIFY_COST, table.cost[name].bytes_read)[0]
        for name, quality in table.quality.items()
        if name in variants
    }
    name = max(gains, key=gains.__getitem__, default=BASE)
    if name == BASE or gains[name] <= MIN_GAIN:
        return None
    return Drafter(variants[name], table.quality[name].agreement, table.cost[name].bytes_read)
