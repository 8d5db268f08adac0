"""One step of the engine: schedule, run the decoder, sample, hand out what came of it.

What fails costs the requests that made it fail, and nobody else: a pass of the decoder is run again
in parts, and what is done for one request alone ends that one.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch

from controller import StepRecord
from pruners.variant import VariantSpec
from server.engine.backends.base import Decoder
from server.engine.cache.eviction import evict
from server.engine.passes import Done, Passes
from server.engine.sampling import SamplingError
from server.engine.scheduler import Scheduler, Work
from server.engine.scores import likeliest_or_sampled, prompt_scores
from server.engine.sequence import Delta, FinishReason, Sequence, TokenLogprob
from server.engine.speculation.drafting import Drafter

log = logging.getLogger(__name__)

Failure = Literal["step", "request"]
"""What failed: a whole `step`, or what was done for one `request`."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many threads inside."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Runner:
    """Drives the scheduler and the decoder. Used by one thread at a time.

    With a `drafter`, the base's answers may be guessed ahead by a variant. `on_failure` hears of
    everything that fails.
    """

    def __init__(
        self, decoder: Decoder, scheduler: Scheduler, drafter: Drafter | None = None
    ) -> None:
        self._drafter = drafter
        self.decoder = decoder
        self.scheduler = scheduler
        self.on_failure: Callable[[Failure], None] = lambda failure: None
        self._passes = Passes(decoder, self._fail, lambda: self.on_failure("step"))

    def step(self, on_step: Callable[[StepRecord], None] | None = None) -> bool:
        """Processes one batch; False if there was nothing to do.

        Raises only if the decoder fails whatever it is given.
        """
        with self.threads():
            return self._step(on_step)

    def threads(self) -> AbstractContextManager[None]:
        """As many as suit the decoder are PyTorch's inside."""
        return torch_threads(self.decoder.torch_threads or torch.get_num_threads())

    def _step(self, on_step: Callable[[StepRecord], None] | None) -> bool:
        for sequence in self.scheduler.take_cancelled():
            sequence.emit(Delta(finish_reason=FinishReason.ABORT))
        work = self.scheduler.schedule(self._drafted(on_step))
        while self.scheduler.broken:
            self._fail(*self.scheduler.broken.pop())
        if not work:
            return False
        # Rows of equal variants stand together, the widest first: sub-batches are then slices.
        work.sort(key=lambda item: _rank(item.variant), reverse=True)
        started = time.perf_counter()
        done = [one for one in self._passes.run(work) if self._isolated(one, self._settle)]
        scored = sum(len(one.scores) for one in done)
        record = _record(work, scored, time.perf_counter() - started)
        if all(not item.sequence.in_prompt for item in work):
            self.scheduler.cost.observe(sum(item.count for item in work), record.seconds)
        if on_step is not None:
            on_step(record)
        for one in done:
            if one.scores:
                self._isolated(one, self._write)
        return True

    def _drafted(self, on_step: Callable[[StepRecord], None] | None) -> dict[Sequence, list[int]]:
        """What a variant guesses that running answers go on with, while nobody waits or reads."""
        drafter, scheduler = self._drafter, self.scheduler
        if drafter is None or not scheduler.limits.speculate or scheduler.waiting:
            return {}
        if any(sequence.in_prompt for sequence in scheduler.running):
            return {}
        share = scheduler.cost.share(len(scheduler.running))
        answers = [s for s in scheduler.running if drafter.suits(s, share)]
        count = drafter.count(share) if answers else 0
        answers = [s for s in answers if s.cache is not None and s.cache.reserve(count + 1)]
        guesses: dict[Sequence, list[int]] = {answer: [] for answer in answers}
        before = [answer.computed for answer in answers]
        try:
            for _ in range(count if answers else 0):
                self._guess(drafter, guesses, on_step)
        except Exception:
            log.exception("guessing failed; going on without it")
            self.on_failure("step")
            self._drafter, guesses = None, {}
        for answer, computed in zip(answers, before, strict=True):
            assert answer.cache is not None
            answer.cache.rewind(answer.computed - computed)
        return guesses

    def _guess(
        self,
        drafter: Drafter,
        guesses: dict[Sequence, list[int]],
        on_step: Callable[[StepRecord], None] | None,
    ) -> None:
        """One more token for each."""
        started = time.perf_counter()
        answers = list(guesses)
        best = self.decoder.argmax(self.decoder.forward(drafter.segments(answers, guesses)))
        if min(best) < 0:
            raise SamplingError
        for answer, token in zip(answers, best, strict=True):
            guesses[answer].append(token)
        if on_step is not None:
            cached = sum(s.cache.cached for s in answers if s.cache is not None)
            rows = ((drafter.variant, len(answers), cached),)
            on_step(StepRecord(time.perf_counter() - started, rows, len(answers)))

    def _isolated(self, done: Done, act: Callable[[Done], None]) -> bool:
        """Whether `act` went well; if it did not, that ends this one sequence."""
        try:
            act(done)
        except Exception as error:
            self._fail(done.item.sequence, error)
            return False
        return True

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """Ends a sequence with an error."""
        said = "the engine failed on this request"
        if isinstance(error, SamplingError):
            said = str(error)
            log.warning("%s: %s", sequence.request.request_id, said)
        else:
            log.error("%s failed", sequence.request.request_id, exc_info=error)
        self.on_failure("request")
        self.scheduler.remove(sequence, sound=False)
        try:
            sequence.emit(Delta(finish_reason=FinishReason.ERROR, error=said))
        except Exception:
            log.exception("nobody hears of the failure of %s", sequence.request.request_id)

    def _settle(self, done: Done) -> None:
        """What goes with a sequence's tokens, whether or not there is more to read."""
        sequence = done.item.sequence
        request, cache = sequence.request, sequence.cache
        assert cache is not None
        if request.prompt_logprobs and not sequence.output:
            first = sequence.computed - len(done.hidden)
            sequence.prompt_logprobs += prompt_scores(self.decoder, sequence, first, done.hidden)
        evict(cache, self.decoder.weights, done.item.variant, sequence.prompt_read)
        if request.max_tokens == 0 and sequence.prompt_read:
            self.scheduler.remove(sequence)
            scores = tuple(sequence.prompt_logprobs) if request.prompt_logprobs else None
            sequence.emit(Delta(prompt_logprobs=scores, finish_reason=FinishReason.LENGTH))

    def _write(self, done: Done) -> None:
        """Samples the next token, and one more for each guess that the one before confirmed."""
        item = done.item
        sequence, guesses = item.sequence, item.guesses
        assert sequence.cache is not None
        sequence.cache.rewind(len(guesses))
        accepted = 0
        for row, found in enumerate(done.scores):
            token, logprob = likeliest_or_sampled(sequence, found)
            confirmed = row < len(guesses) and token == guesses[row]
            if confirmed:
                accepted += 1
                sequence.cache.advance(1)  # its keys and values are there already
            self._advance(sequence, token, logprob)
            if not confirmed or sequence.cache is None:
                break
        if guesses:
            sequence.drafts.verified(len(guesses), accepted, own=not item.drafted)
        if item.drafted and self._drafter is not None:
            self._drafter.verified(len(guesses), accepted)

    def _advance(self, sequence: Sequence, token: int, logprob: TokenLogprob | None) -> None:
        now = time.monotonic()
        request = sequence.request
        scores = None
        if not sequence.output:
            sequence.first_token_at = now
            scores = tuple(sequence.prompt_logprobs) if request.prompt_logprobs else None
        sequence.last_token_at = now
        sequence.write(token)
        enough = len(sequence.output) >= request.min_tokens
        ended = enough and token in sequence.final
        text = "" if ended and not request.stop.include_in_output else sequence.text.push(token)
        reason: FinishReason | None = None
        stop_reason: str | int | None = None
        if ended:
            reason = FinishReason.STOP
            stop_reason = token if token in request.stop.token_ids else None
        elif sequence.text.stopped_by is not None:
            reason, stop_reason = FinishReason.STOP, sequence.text.stopped_by
        elif len(sequence.output) >= request.max_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            self.scheduler.remove(sequence)
            text += sequence.text.finish()
            if reason is not FinishReason.STOP and sequence.text.stopped_by is not None:
                reason, stop_reason = FinishReason.STOP, sequence.text.stopped_by
        sequence.emit(Delta(text, token, logprob, scores, reason, stop_reason))


def _rank(variant: VariantSpec) -> tuple[int, int, str]:
    return (sum(variant.ffn), sum(variant.kv_groups), variant.name)


def _record(work: list[Work], sampled: int, seconds: float) -> StepRecord:
    rows: dict[VariantSpec, tuple[int, int]] = {}
    for item in work:
        variant, cache = item.variant, item.sequence.cache
        tokens, cached = rows.get(variant, (0, 0))
        rows[variant] = tokens + item.count, cached + (cache.cached if cache is not None else 0)
    return StepRecord(seconds, tuple((v, *both) for v, both in rows.items()), sampled)
