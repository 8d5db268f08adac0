"""One step of the engine: schedule, run the decoder, postprocess.

An error ends only the requests that cause it: a failed pass of the decoder is run again in parts
(see `executor`), and an error in what is done for one request ends that request.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch

from pruners.variant import VariantSpec
from server.engine.backends.base import Decoder
from server.engine.cache.eviction import evict
from server.engine.constraint import ConstraintError
from server.engine.executor import Executor, SequenceOutput
from server.engine.pooling import EmbeddingError
from server.engine.sampling import SamplingError
from server.engine.scheduler import ScheduledTokens, Scheduler
from server.engine.scores import choose_token, score_prompt
from server.engine.sequence import Delta, FinishReason, Sequence
from server.engine.sequence_status import StepRows
from server.engine.speculation.drafting import Drafter, StepListener
from server.engine.stopping import append_token

log = logging.getLogger(__name__)

Failure = Literal["step", "request", "engine"]
"""What failed: a `step`, what was done for one `request`, or the `engine`, which began anew."""
_MAX_LOST_STEPS = 10  # in a row


class BrokenEngineError(RuntimeError):
    """No step serves any request any more, though the decoder works."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the number of PyTorch's threads within the context."""
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

    With a `drafter`, a variant may draft tokens for the base's sequences. `on_failure` is called
    for everything that fails.
    """

    def __init__(
        self, decoder: Decoder, scheduler: Scheduler, drafter: Drafter | None = None
    ) -> None:
        self.decoder = decoder
        self.scheduler = scheduler
        self.drafter = drafter
        self.on_failure: Callable[[Failure], None] = lambda failure: None
        self._faults = 0  # of the present step
        self._lost_steps = 0  # the latest ones, in which the engine failed on every request
        self._executor = Executor(decoder, self._fail, lambda: self.on_failure("step"))

    def step(self, on_step: StepListener | None = None) -> bool:
        """Process one batch; return False if there was nothing to do.

        `on_step` is called after each pass of the decoder. Raises only if the decoder fails
        whatever it is given, or if many steps in a row served no request.
        """
        with self.threads():
            scheduled = self._schedule(on_step)
            if not scheduled:
                return False
            self._faults = 0
            outputs = self._run(scheduled, on_step)
            self._postprocess(outputs)
            for item in scheduled:
                item.sequence.publish_progress()
            self._lost_steps = self._lost_steps + 1 if self._faults >= len(scheduled) else 0
            if self._lost_steps >= _MAX_LOST_STEPS:
                raise BrokenEngineError(f"{self._lost_steps} steps failed one after the other")
            return True

    def reset(self) -> None:
        """Forget all requests and all that is cached. Raises if the decoder does not work."""
        self._lost_steps = 0
        self.scheduler.reset()
        with self.threads():
            self._executor.check_decoder()

    def threads(self) -> AbstractContextManager[None]:
        """Return a context in which PyTorch has as many threads as suit the decoder."""
        return torch_threads(self.decoder.torch_threads or torch.get_num_threads())

    def _schedule(self, on_step: StepListener | None) -> list[ScheduledTokens]:
        for sequence, end in self.scheduler.begin_step():
            sequence.emit(end)
        scheduled = self.scheduler.schedule(self._draft(on_step))
        while self.scheduler.failed_admissions:
            self._fail(*self.scheduler.failed_admissions.pop())
        for item in scheduled:
            item.sequence.publish_progress(item.count)
        # Rows of one variant stand together, the widest first: their rows are then slices.
        return sorted(scheduled, key=lambda item: _width(item.variant), reverse=True)

    def _draft(self, on_step: StepListener | None) -> dict[Sequence, list[int]]:
        if self.drafter is None:
            return {}
        try:
            return self.drafter.draft(self.decoder, self.scheduler, on_step)
        except Exception:
            log.exception("drafting by a variant failed; it is switched off")
            self.on_failure("step")
            self.drafter = None
            return {}

    def _run(
        self, scheduled: list[ScheduledTokens], on_step: StepListener | None
    ) -> list[SequenceOutput]:
        """Run the decoder and what belongs to the time of a step: prompt scores and evictions."""
        step_rows, started = StepRows(scheduled), time.perf_counter()
        outputs = [
            output
            for output in self._executor.run(scheduled)
            if self._succeeds(output, self._finish_pass)
        ]
        sampled = sum(len(output.scores) for output in outputs)
        record = step_rows.record(sampled, time.perf_counter() - started)
        if all(not item.sequence.in_prompt for item in scheduled):
            rows = sum(item.count for item in scheduled)
            self.scheduler.cost.observe(rows, record.seconds)
        if on_step is not None:
            on_step(record)
        return outputs

    def _postprocess(self, outputs: list[SequenceOutput]) -> None:
        for output in outputs:
            if output.scores:
                self._succeeds(output, self._write)

    def _finish_pass(self, output: SequenceOutput) -> None:
        """Score or embed the prompt, evict from the cache, and end a request that only reads."""
        sequence = output.scheduled.sequence
        request, cache = sequence.request, sequence.cache
        assert cache is not None
        if request.prompt_logprobs is not None and not sequence.output:
            first = sequence.computed - len(output.hidden)
            sequence.prompt_logprobs += score_prompt(self.decoder, sequence, first, output.hidden)
        if sequence.pool is not None:
            sequence.pool.add(sequence.computed - len(output.hidden), output.hidden)
        evict(cache, self.decoder.weights, output.scheduled.variant, sequence.prompt_read)
        if request.max_tokens == 0 and sequence.prompt_read:
            wanted = request.prompt_logprobs is not None
            scores = tuple(sequence.prompt_logprobs) if wanted else None
            embedding = None if sequence.pool is None else sequence.pool.vector()
            self.scheduler.remove(sequence)
            end = FinishReason.LENGTH
            sequence.emit(Delta(prompt_logprobs=scores, embedding=embedding, finish_reason=end))

    def _write(self, output: SequenceOutput) -> None:
        """Choose the next token, and one more for each draft that is the token chosen before."""
        item = output.scheduled
        sequence, drafts = item.sequence, item.drafts
        assert sequence.cache is not None
        sequence.cache.rewind(len(drafts))
        accepted = 0
        for row, score in enumerate(output.scores):
            allowed = None if output.masks is None else output.masks[row]
            token, logprob = choose_token(sequence, score, allowed)
            confirmed = row < len(drafts) and token == drafts[row]
            if confirmed:
                accepted += 1
                sequence.cache.advance(1)  # its keys and values are there already
            delta = append_token(sequence, token, logprob)
            if delta.finish_reason is not None:
                self.scheduler.remove(sequence)
            sequence.emit(delta)
            if not confirmed or sequence.cache is None:
                break
        if drafts:
            by_lookup, by_variant = (item.drafted_by == by for by in ("lookup", "variant"))
            sequence.lookup.record_verified(len(drafts), accepted, by_lookup)
            if by_variant and self.drafter is not None:
                self.drafter.record_verified(len(drafts), accepted)

    def _succeeds(self, output: SequenceOutput, act: Callable[[SequenceOutput], None]) -> bool:
        """Call `act`; if it raises, end this one sequence and return False."""
        try:
            act(output)
        except Exception as error:
            self._fail(output.scheduled.sequence, error)
            return False
        return True

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence with an error."""
        message = "the engine failed on this request"
        if isinstance(error, SamplingError | EmbeddingError | ConstraintError):
            message = str(error)
            log.warning("%s: %s", sequence.request.request_id, message)
        else:
            log.error("%s failed", sequence.request.request_id, exc_info=error)
            self._faults += 1
        self.on_failure("request")
        self.scheduler.remove(sequence, reuse_cache=False)
        try:
            sequence.emit(Delta(finish_reason=FinishReason.ERROR, error=message))
        except Exception:
            log.exception("the failure of %s cannot be delivered", sequence.request.request_id)


def _width(variant: VariantSpec) -> tuple[int, int, str]:
    return (sum(variant.ffn), sum(variant.kv_groups), variant.name)
