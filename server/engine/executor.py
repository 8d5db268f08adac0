"""Runs the decoder for a step. A sequence on which the decoder fails does not end the others."""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from dataclasses import dataclass

from torch import Tensor

from pruners.variant import base_spec
from server.engine.backends.base import Decoder, Segment
from server.engine.draw import Draw
from server.engine.mask_worker import Masks, MaskWorker
from server.engine.scheduler import ScheduledTokens
from server.engine.sequence import Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """What the decoder computed for the scheduled tokens of one sequence.

    `hidden` is `[count, hidden]`. `scores` has one entry for the last token that is no draft and
    one for each draft: the next token, or fp32 logits `[vocab]` where the request needs them. It is
    empty while there are more tokens to read. `masks` are the tokens that a constraint allows, of
    each entry (see `TokenConstraint.masks`).
    """

    scheduled: ScheduledTokens
    hidden: Tensor
    scores: list[int | Tensor]
    masks: Tensor | None = None


class Executor:
    """Runs the decoder over scheduled tokens.

    `end` is called with a sequence on which the decoder fails and the error, `on_step_failure`
    after a failed step.
    """

    def __init__(
        self,
        decoder: Decoder,
        end: Callable[[Sequence, Exception], None],
        on_step_failure: Callable[[], None],
    ) -> None:
        self._decoder = decoder
        self._end = end
        self._on_step_failure = on_step_failure
        self._mask_worker = MaskWorker()

    def run(self, scheduled: list[ScheduledTokens]) -> list[SequenceOutput]:
        """Run the decoder, in parts after a failure; return the outputs of what succeeded.

        Raises whatever the decoder raises if it fails even on a single token of its own.
        """
        try:
            return self._run_once(scheduled)
        except Exception:
            log.exception("a step failed; it is run again in parts")
            self._on_step_failure()
        outputs = self._run_in_parts(scheduled)
        if not outputs:
            self.check_decoder()
        return outputs

    def _run_in_parts(self, scheduled: list[ScheduledTokens]) -> list[SequenceOutput]:
        """Run halves of halves; end the sequences on which the decoder fails alone."""
        try:
            return self._run_once(scheduled)
        except Exception as error:
            if len(scheduled) == 1:
                self._end(scheduled[0].sequence, error)
                return []
        half = len(scheduled) // 2
        return self._run_in_parts(scheduled[:half]) + self._run_in_parts(scheduled[half:])

    def _run_once(self, scheduled: list[ScheduledTokens]) -> list[SequenceOutput]:
        """Run one pass of the decoder. If it fails, the caches are as they were before."""
        caches = [item.sequence.cache for item in scheduled]
        before = [cache.processed for cache in caches if cache is not None]
        masks = self._mask_worker.begin(scheduled)
        try:
            hidden = self._decoder.forward([_segment(item) for item in scheduled])
            return self._outputs(scheduled, hidden, masks.result())
        except Exception:
            wait([masks])
            for cache, processed in zip(caches, before, strict=True):
                assert cache is not None
                cache.rewind(cache.processed - processed)
            raise

    def check_decoder(self) -> None:
        """Raise if the decoder fails on a sequence of its own: then the requests are not why."""
        weights, cache = self._decoder.weights, self._decoder.cache.open()
        if cache.reserve(1):
            try:
                segment = Segment([0], cache, base_spec(weights.shape))
                self._decoder.argmax(self._decoder.forward([segment]))
            finally:
                cache.close()

    def _outputs(
        self, scheduled: list[ScheduledTokens], hidden: Tensor, masks: Masks
    ) -> list[SequenceOutput]:
        """Compute scores where there are no more tokens to read; `hidden` is `[rows, hidden]`."""
        counts = [item.count for item in scheduled]
        outputs = [
            SequenceOutput(item, rows, [], masks.get(item.sequence))
            for item, rows in zip(scheduled, hidden.split(counts), strict=True)
        ]
        end = 0
        in_logits: list[tuple[SequenceOutput, int]] = []
        drawn: list[tuple[SequenceOutput, int]] = []
        draws: list[Draw] = []
        for output in outputs:
            sequence = output.scheduled.sequence
            end += output.scheduled.count
            if sequence.pending > 0 or not sequence.request.max_tokens:
                continue
            count = 1 + len(output.scheduled.drafts)
            for position, row in enumerate(range(end - count, end), len(sequence.output)):
                if sequence.needs_logits(position):
                    in_logits.append((output, row))
                else:
                    drawn.append((output, row))
                    draw = sequence.sampler.draw(position)
                    if output.masks is not None:
                        draw = draw._replace(allowed=output.masks[position - len(sequence.output)])
                    draws.append(draw)
        # Of one sequence, the rows that need logits are the first ones.
        for pairs in (in_logits, drawn):
            if not pairs:
                continue
            part = hidden if len(pairs) == len(hidden) else hidden[[row for _, row in pairs]]
            scores: Iterable[int | Tensor]
            if pairs is drawn:
                scores = self._decoder.sample(part, draws)
            else:
                scores = self._decoder.logits(part)
            for (output, _), score in zip(pairs, scores, strict=True):
                output.scores.append(score)
        return outputs


def _segment(item: ScheduledTokens) -> Segment:
    sequence = item.sequence
    assert sequence.cache is not None
    tokens = sequence.next_tokens(item.count - len(item.drafts)) + list(item.drafts)
    shallow, depth = sequence.next_shallow(item.count)
    outputs: int | None = 1 + len(item.drafts)
    if sequence.request.needs_all_hidden and not sequence.output:
        outputs = None
    elif sequence.pending + len(item.drafts) > len(tokens):
        outputs = 0
    return Segment(tokens, sequence.cache, item.variant, outputs, shallow, depth)
