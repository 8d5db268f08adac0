"""Passes of the decoder over a step's work. What fails costs only those who made it fail."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pruners.variant import base_spec
from server.engine.backends.base import Decoder, Segment
from server.engine.scheduler import Work
from server.engine.sequence import Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Done:
    """Work that the decoder has done: its hidden states, and what the next tokens are chosen by.

    `scores` has one entry for the last token and one for each guess behind it: the likeliest token
    where that is all that counts, else logits `[vocab]`. It is empty while there is more to read.
    """

    item: Work
    hidden: Tensor
    scores: list[int | Tensor]


class Passes:
    """Runs a step's work. `fail` ends a sequence; `failed` hears of a step that failed."""

    def __init__(
        self,
        decoder: Decoder,
        fail: Callable[[Sequence, Exception], None],
        failed: Callable[[], None],
    ) -> None:
        self._decoder = decoder
        self._fail = fail
        self._failed = failed

    def run(self, work: list[Work]) -> list[Done]:
        """Runs the decoder. Raises if it cannot even do a single token."""
        try:
            return self._pass(work)
        except Exception:
            log.exception("a step failed; it is run again in parts")
            self._failed()
        done = self._in_parts(work)
        if not done:
            self._probe()
        return done

    def _in_parts(self, work: list[Work]) -> list[Done]:
        """Ends the sequences that the decoder fails on even alone, and does the others' work."""
        try:
            return self._pass(work)
        except Exception as error:
            if len(work) == 1:
                self._fail(work[0].sequence, error)
                return []
        half = len(work) // 2
        return self._in_parts(work[:half]) + self._in_parts(work[half:])

    def _pass(self, work: list[Work]) -> list[Done]:
        """One pass of the decoder. If that fails, the sequences are as they were before."""
        caches = [item.sequence.cache for item in work]
        before = [cache.processed for cache in caches if cache is not None]
        try:
            hidden = self._decoder.forward([_segment(item) for item in work])
            return self._scored(work, hidden)
        except Exception:
            for cache, seen in zip(caches, before, strict=True):
                assert cache is not None
                cache.rewind(cache.processed - seen)
            raise

    def _probe(self) -> None:
        """Raises if the decoder fails on a sequence of its own, too: then it is not theirs."""
        weights, cache = self._decoder.weights, self._decoder.cache.open()
        if cache.reserve(1):
            try:
                segment = Segment([0], cache, base_spec(weights.shape))
                self._decoder.argmax(self._decoder.forward([segment]))
            finally:
                cache.close()

    def _scored(self, work: list[Work], hidden: Tensor) -> list[Done]:
        """What the next tokens of those are chosen by who have nothing left to read."""
        found = [
            Done(item, rows, [])
            for item, rows in zip(work, hidden.split([item.count for item in work]), strict=True)
        ]
        end = 0
        chosen: dict[bool, list[tuple[Done, int]]] = {True: [], False: []}
        for done in found:
            sequence = done.item.sequence
            end += done.item.count
            if sequence.pending <= 0 and sequence.request.max_tokens:
                count = 1 + len(done.item.guesses)
                chosen[sequence.plain] += [(done, row) for row in range(end - count, end)]
        for plain, rows in chosen.items():
            if not rows:
                continue
            part = hidden if len(rows) == len(hidden) else hidden[[row for _, row in rows]]
            scores = self._decoder.argmax(part) if plain else self._decoder.logits(part)
            for (done, _), score in zip(rows, scores, strict=True):
                done.scores.append(score)
        return found


def _segment(item: Work) -> Segment:
    sequence = item.sequence
    assert sequence.cache is not None
    tokens = sequence.next_tokens(item.count - len(item.guesses)) + list(item.guesses)
    read: int | None = 1 + len(item.guesses)
    if sequence.request.prompt_logprobs and not sequence.output:
        read = None
    elif sequence.pending + len(item.guesses) > len(tokens):
        read = 0
    return Segment(tokens, sequence.cache, item.variant, read)
