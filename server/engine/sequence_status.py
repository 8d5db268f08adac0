"""What the controller is told of a sequence and of a step."""

import sys

from controller import SequenceStatus, StepRecord
from controller.engine_status import shallow_part
from pruners.kv import Eviction
from pruners.variant import VariantSpec
from server.engine.reading_depth import count_shallow
from server.engine.scheduler import ScheduledTokens
from server.engine.sequence import Sequence


def status_of(sequence: Sequence, running: bool) -> SequenceStatus:
    """Return what the controller is told of a sequence. Called from any thread."""
    request, progress = sequence.request, sequence.progress
    total = len(request.prompt) + request.max_tokens
    budget = request.kv_budget
    # Budgets that select pages free no memory.
    limit = max(progress.pending, budget.budget) if isinstance(budget, Eviction) else total
    # Once it has started, the reusable tokens are in its own cache and no longer pending.
    started = running or progress.started or not request.takes_prefix
    unread = max(0, progress.pending - (0 if started else request.reusable))
    prompt_left = unread if progress.in_prompt else 0
    shallow, depth = 0, 0
    if prompt_left and request.reader is not None:
        first = len(request.prompt) + progress.written - unread
        shallow, depth = count_shallow(sequence.depths[first:]), request.reader.depth
    return SequenceStatus(
        variant=sequence.variant,
        running=running,
        prompt_left=prompt_left,
        output_most=request.max_tokens,
        output_left=request.max_tokens - progress.written,
        cached=progress.cached,
        cache_limit=min(total, limit),
        shallow_left=shallow,
        depth=depth,
        client=request.terms.client,
        work=request.terms.work,
    )


class StepRows:
    """The rows of a step by what they run through. Made before the step, recorded after it."""

    def __init__(self, scheduled: list[ScheduledTokens]) -> None:
        self._parts = [(item, _shallow(item), _most_attended(item)) for item in scheduled]

    def record(self, sampled: int, seconds: float) -> StepRecord:
        """Return the record of the step. Shallow tokens are rows of their own."""
        rows: dict[VariantSpec, tuple[int, int]] = {}

        def add(variant: VariantSpec, tokens: int, attended: int) -> None:
            before = rows.get(variant, (0, 0))
            rows[variant] = before[0] + tokens, before[1] + attended

        for item, (shallow, depth), most in self._parts:
            cache, full = item.sequence.cache, item.count - shallow
            attended = 0 if cache is None else min(cache.cached, most)
            if full:
                add(item.variant, full, attended)
            if shallow:  # the layers below read what is cached for both at once
                add(shallow_part(item.variant, depth), shallow, 0 if full else attended)
        return StepRecord(seconds, tuple((v, *both) for v, both in rows.items()), sampled)


def _shallow(item: ScheduledTokens) -> tuple[int, int]:
    """Return how many of the scheduled tokens are shallow, and their depth."""
    sequence = item.sequence
    depths = sequence.depths[sequence.computed : sequence.computed + item.count]
    shallow = count_shallow(depths)
    return shallow, min(depths) if shallow else 0


def _most_attended(item: ScheduledTokens) -> int:
    """Return the largest number of cached tokens that each scheduled token may attend to."""
    cache = item.sequence.cache
    bounds = None if cache is None else cache.page_bounds
    return sys.maxsize if bounds is None else bounds.selection.budget
