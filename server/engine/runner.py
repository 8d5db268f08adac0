"""One step of the engine: schedule, run the decoder, sample, hand out what came of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from controller import StepRecord
from pruners.variant import VariantSpec
from server.engine.cache.eviction import make_room
from server.engine.drafting import Drafter
from server.engine.load import AnyDecoder
from server.engine.packed.native_decoder import NativeDecoder
from server.engine.scheduler import Scheduler, Work
from server.engine.segment import Segment
from server.engine.sequence import Delta, FinishReason, Sequence, TokenLogprob

_LOGIT_ROWS = 128  # prompt positions whose full-vocabulary logits exist at one time


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

    With a `drafter`, the base's answers may be guessed ahead by a variant.
    """

    def __init__(
        self, decoder: AnyDecoder, scheduler: Scheduler, drafter: Drafter | None = None
    ) -> None:
        self._drafter = drafter
        self.decoder = decoder
        self.scheduler = scheduler
        self._native = isinstance(decoder, NativeDecoder)

    def step(self, on_step: Callable[[StepRecord], None] | None = None) -> bool:
        """Processes one batch; False if there was nothing to do."""
        with self.threads():
            return self._step(on_step)

    def threads(self) -> AbstractContextManager[None]:
        """As many as suit the decoder are PyTorch's inside."""
        # PyTorch's idle threads would spin beside the native ones, which do the heavy work.
        return torch_threads(1 if self._native else torch.get_num_threads())

    def _step(self, on_step: Callable[[StepRecord], None] | None) -> bool:
        self._drop_cancelled()
        work = self.scheduler.schedule(self._drafted(on_step))
        if not work:
            return False
        # Rows of equal variants stand together, the widest first: sub-batches are then slices.
        work.sort(key=lambda item: _rank(item.sequence.variant), reverse=True)
        started = time.perf_counter()
        hidden = self.decoder.forward([self._segment(item) for item in work])
        ready = self._ready(work, hidden)
        plain, sampled = self._scores(ready, hidden)
        scored = sum(count for _, _, count in ready)
        record = _record(work, scored, time.perf_counter() - started)
        if all(not item.sequence.in_prompt for item in work):
            self.scheduler.cost.observe(len(hidden), record.seconds)
        if on_step is not None:
            on_step(record)
        for item, _, count in ready:
            source = plain if item.sequence.plain else sampled
            self._write(item, [next(source) for _ in range(count)])
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
        for _ in range(count if answers else 0):
            started = time.perf_counter()
            best = self.decoder.best(self.decoder.forward(drafter.segments(answers, guesses)))
            for answer, token in zip(answers, best, strict=True):
                guesses[answer].append(token)
            if on_step is not None:
                cached = sum(s.cache.held for s in answers if s.cache is not None)
                rows = ((drafter.variant, len(answers), cached),)
                on_step(StepRecord(time.perf_counter() - started, rows, len(answers)))
        for answer in answers:
            assert answer.cache is not None
            answer.cache.rewind(count)
        return guesses

    def abort_all(self, error: str) -> None:
        """Ends every sequence with an error; used when a step failed."""
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            self.scheduler.remove(sequence, sound=False)
            sequence.emit(Delta(finish_reason=FinishReason.ERROR, error=error))

    def _drop_cancelled(self) -> None:
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            if sequence.cancelled:
                self.scheduler.remove(sequence)
                sequence.emit(Delta(finish_reason=FinishReason.ABORT))

    def _segment(self, item: Work) -> Segment:
        sequence = item.sequence
        assert sequence.cache is not None
        tokens = sequence.next_tokens(item.count - len(item.guesses)) + list(item.guesses)
        read: int | None = 1 + len(item.guesses)
        if sequence.request.prompt_logprobs and not sequence.output:
            read = None
        elif sequence.pending + len(item.guesses) > len(tokens):
            read = 0
        return Segment(tokens, sequence.cache, sequence.variant, read)

    def _ready(self, work: list[Work], hidden: Tensor) -> list[tuple[Work, int, int]]:
        """Work whose sequence can be sampled from now, with its first such row and their number."""
        found = []
        end = 0
        for item in work:
            begin, end = end, end + item.count
            sequence = item.sequence
            if sequence.request.prompt_logprobs and not sequence.output:
                self._score_prompt(sequence, hidden[begin:end])
            assert sequence.cache is not None
            read = sequence.pending <= 0
            make_room(sequence.cache, self.decoder.weights, sequence.variant, read)
            if read:
                count = 1 + len(item.guesses)
                found.append((item, end - count, count))
        return found

    def _scores(
        self, ready: list[tuple[Work, int, int]], hidden: Tensor
    ) -> tuple[Iterator[int | Tensor], Iterator[int | Tensor]]:
        """The likeliest token of each row where that is all that counts, and others' logits."""
        rows: dict[bool, list[int]] = {True: [], False: []}
        for item, first, count in ready:
            rows[item.sequence.plain] += range(first, first + count)

        def chosen(plain: bool) -> Tensor:
            return hidden if len(rows[plain]) == len(hidden) else hidden[rows[plain]]

        best = self.decoder.best(chosen(True)) if rows[True] else []
        logits = self.decoder.logits(chosen(False)) if rows[False] else ()
        return iter(best), iter(logits)

    def _write(self, item: Work, scores: list[int | Tensor]) -> None:
        """Samples the next token, and one more for each guess that the one before confirmed."""
        sequence, guesses = item.sequence, item.guesses
        assert sequence.cache is not None
        sequence.cache.rewind(len(guesses))
        accepted = 0
        for row, found in enumerate(scores):
            token, logprob = (found, None) if isinstance(found, int) else _sample(sequence, found)
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

    def _score_prompt(self, sequence: Sequence, hidden: Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow the rows just processed."""
        prompt, top = sequence.request.prompt, sequence.request.logprobs or 0
        done = sequence.computed
        first = done - len(hidden)
        targets = list(prompt[first + 1 : done + 1])
        for at in range(0, len(targets), _LOGIT_ROWS):
            part = targets[at : at + _LOGIT_ROWS]
            logits = self.decoder.logits(hidden[at : at + len(part)])
            sequence.prompt_logprobs += _logprobs(logits, part, top)

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
        ended = enough and (token in request.eos_token_ids or token in request.stop.token_ids)
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


def _sample(sequence: Sequence, logits: Tensor) -> tuple[int, TokenLogprob | None]:
    """The next token by these logits, `[vocab]`."""
    request = sequence.request
    scores = logits
    if len(sequence.output) < request.min_tokens and request.eos_token_ids:
        scores = scores.clone()
        scores[list(request.eos_token_ids)] = -torch.inf
    token = sequence.sampler(scores, list(request.prompt), sequence.output)
    if request.logprobs is None:
        return token, None
    return token, _logprobs(logits[None], [token], request.logprobs)[0]


def _rank(variant: VariantSpec) -> tuple[int, int, str]:
    return (sum(variant.ffn), sum(variant.kv_groups), variant.name)


def _record(work: list[Work], sampled: int, seconds: float) -> StepRecord:
    rows: dict[VariantSpec, tuple[int, int]] = {}
    for item in work:
        variant, cache = item.sequence.variant, item.sequence.cache
        tokens, cached = rows.get(variant, (0, 0))
        rows[variant] = tokens + item.count, cached + (cache.held if cache is not None else 0)
    return StepRecord(seconds, tuple((v, *both) for v, both in rows.items()), sampled)


def _logprobs(logits: Tensor, tokens: list[int], top: int) -> list[TokenLogprob]:
    """Each row's log-probability of its token and of the `top` most likely ones.

    All values come from one tensor, so that a client may compare them for equality.
    """
    scores = logits.log_softmax(-1)
    picked = scores.gather(1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0].tolist()
    values, ids = scores.topk(min(top, scores.shape[1]), dim=-1)
    found = []
    for token, logprob, row, names in zip(
        tokens, picked, values.tolist(), ids.tolist(), strict=True
    ):
        best = dict(zip(names, row, strict=True))
        likeliest = tuple({token: logprob, **best}.items())
        found.append(TokenLogprob(token, logprob, likeliest, top))
    return found
