"""One request in the engine: its parameters, its state, and the pieces of its answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from torch import Tensor

from pruners.kv import KVBudget, PageSelection
from pruners.reading.reader import PromptReader
from pruners.variant import VariantSpec
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.constraint import TokenConstraint
from server.engine.detokenizer import Detokenizer, StopRules
from server.engine.late_decision import Decide
from server.engine.pooling import HiddenPool, Pooling
from server.engine.progress import Progress
from server.engine.queue_terms import NO_TERMS, QueueTerms
from server.engine.reading_depth import depth_changes, full_depths, shallow_tokens
from server.engine.sampling import SamplingParams, TokenSampler
from server.engine.speculation.prompt_lookup import PromptLookup


class FinishReason(StrEnum):
    """Why an answer ended, as in the OpenAI API."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REFUSED = "refused"  # it waited, and had to go before anything was written


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability in nats, and those of the `requested` most likely tokens.

    `top` holds the token itself first, then the alternatives, each with its log-probability.
    `rank` is the token's place among all, 1 for the most likely one.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    requested: int
    rank: int


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """The parameters of one answer. `admission.check` tells which values are allowed.

    `reader` says which tokens of the prompt run through its lower layers only; None: all of them
    are read in full. With `max_tokens` 0 the prompt is read, and scored if `prompt_logprobs` is
    set, embedded if `pooling` is, and nothing is written. `eos_token_ids` is empty for requests
    that ignore them. `logprobs` is the number of alternatives for each written token. `reusable` is
    the number of tokens of the prompt that the prefix cache had for the variant and the reader when
    the request came. `constraint` is what the answer must follow, in a state of its own; `terms`
    are how it waits.
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    variant: VariantSpec
    kv_budget: KVBudget | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: StopRules = field(default_factory=StopRules)
    eos_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    reusable: int = 0
    reader: PromptReader | None = None
    pooling: Pooling | None = None
    constraint: TokenConstraint | None = None
    terms: QueueTerms = NO_TERMS

    @property
    def needs_all_hidden(self) -> bool:
        """Return whether the final hidden state of each token of the prompt is needed."""
        return self.prompt_logprobs is not None or self.pooling is Pooling.MEAN

    @property
    def takes_prefix(self) -> bool:
        """Return whether it may start from the prefix cache, so that not all tokens are read."""
        return self.kv_budget is None and not self.needs_all_hidden


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step of the engine added to an answer; the last one has a finish reason."""

    text: str = ""
    token: int | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    embedding: Tensor | None = None  # of the prompt, fp32 [hidden]


class Sequence:
    """The engine's state of one request.

    Owned by the engine's thread. Other threads set `cancelled`, `displaced` (it gives way to
    another client) and, by `narrow`, `variant`, and read `progress`, which is replaced as a whole.
    Behind the last delta nothing changes any more.

    `history` is the prompt and the tokens written since. `variant` is the requested variant, which
    narrowing changes at any time; `effective_variant` is the one that the current step uses.
    `decide` returns the final action; it is called once, right before the prompt is read, and None
    from then on. `depths` is how deep each token of the prompt is read (see `ReadingDepths`), known
    once it has started; tokens of the answer run through all layers. `reused` tokens came from the
    prefix cache. Times are seconds of `time.monotonic`.
    """

    def __init__(
        self,
        request: GenerationRequest,
        detokenizer: Detokenizer,
        emit: Callable[[Delta], None],
        decide: Decide | None = None,
    ) -> None:
        self.decide, self.detokenizer = decide, detokenizer
        self._adopt(request)
        self.emit, self.sampler = emit, TokenSampler(request.sampling)
        self.output, self.history = list[int](), list(request.prompt)
        self.lookup = PromptLookup()
        self.prompt_logprobs: list[TokenLogprob] = []
        self.pool = None if request.pooling is None else HiddenPool(request.pooling)
        self.cache: SequenceCache | None = None
        self.cancelled = self.displaced = False
        self.ended, self.reused = False, 0
        self.depths = full_depths(len(request.prompt))
        self._depth_changes: list[int] = []  # first tokens that are read less or more deep
        self._recompute_end = 0  # tokens that were computed before a preemption
        self.arrived = time.monotonic()
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.progress = Progress(len(self.history), True, 0, 0, False)

    def settle(self) -> None:
        """Take the final action, before anything is read. An empty delta says so."""
        if self.decide is not None:
            self._adopt(replace(self.request, **self.decide()._asdict()))
            self.decide = None
            self.emit(Delta())

    def _adopt(self, request: GenerationRequest) -> None:
        self.request = request
        self.variant = self.effective_variant = request.variant
        self._variants_used = [(0, request.variant)]  # with the first token that each computed

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Return the tokens that end the answer."""
        return self.request.eos_token_ids | self.request.stop.token_ids

    def needs_logits(self, position: int) -> bool:
        """Return whether the token at a position of the answer takes more than a draw."""
        asked = self.request.logprobs is not None or self.request.sampling.changes_logits
        return asked or (position < self.request.min_tokens and bool(self.end_token_ids))

    @property
    def computed(self) -> int:
        """Return how many tokens were processed, whether or not they are still cached."""
        return 0 if self.cache is None else self.cache.processed

    @property
    def pending(self) -> int:
        """Return how many tokens are to be processed before the next one can be sampled."""
        return len(self.history) - self.computed

    @property
    def in_prompt(self) -> bool:
        """Return whether it reads the prompt or, after a preemption, what was written."""
        return self.pending > 1 or not self.output

    @property
    def prompt_read(self) -> bool:
        """Return whether all of the prompt is processed."""
        return self.computed >= len(self.request.prompt)

    @property
    def slots_to_start(self) -> int:
        """Return how many slots must be free before it starts, or starts again."""
        budget = self.request.kv_budget
        if budget is None or isinstance(budget, PageSelection):
            return self.pending
        return min(self.pending, max(len(self.request.prompt), budget.budget))

    @property
    def max_chunk(self) -> int:
        """Return how many pending tokens may be processed in one step.

        After a preemption each token is computed as it was before: with the same variant, and with
        the same tokens evicted, or with pages of its own choice.
        """
        done, prompt = self.computed, len(self.request.prompt)
        ends = [len(self.history), *(first for first, _ in self._variants_used)]
        ends += self._depth_changes
        if self._variants_used[-1][1] != self.effective_variant:
            ends.append(self._recompute_end)
        budget = self.request.kv_budget
        if budget is not None and done < prompt:
            ends.append(prompt)
        elif isinstance(budget, PageSelection):
            ends.append(done + 1)
        elif budget is not None:
            cached = 0 if self.cache is None else self.cache.cached
            first_due = max(1, budget.budget - budget.interval - cached + 1)
            ends.append(done + first_due + (prompt - done - first_due) % budget.interval)
        return min(end for end in ends if end > done) - done

    def start_reading(self, depths: bytes, copied: bytes) -> None:
        """Fix how deep each token of the prompt is read: `depths`, as its reader asks for.

        The first are `copied` from the prefix cache, maybe deeper, as they are after a preemption.
        """
        self.reused = len(copied)
        self.depths = copied + depths[len(copied) :]
        self._depth_changes = depth_changes(self.depths)

    @property
    def history_depths(self) -> bytes:
        """Return how deep each token of the history is read."""
        return self.depths + full_depths(len(self.history) - len(self.depths))

    def next_shallow(self, count: int) -> tuple[list[bool] | None, int]:
        """Return which of the next `count` tokens are shallow: see `shallow_tokens`."""
        return shallow_tokens(self.depths[self.computed : self.computed + count], count)

    def next_tokens(self, count: int) -> list[int]:
        """Return the next `count` tokens to process."""
        return self.history[self.computed : self.computed + count]

    def next_variant(self) -> VariantSpec:
        """Return the variant that computes the next tokens."""
        done, variant = self.computed, self.effective_variant
        if done >= self._recompute_end:
            if self._variants_used[-1][1] != variant:
                self._variants_used.append((done, variant))
            return variant
        return next(used for first, used in reversed(self._variants_used) if first <= done)

    def write(self, token: int) -> None:
        """Append a token to the answer."""
        self.output.append(token)
        self.history.append(token)

    def restart(self) -> None:
        """Prepare for processing all tokens again, as they were. Written tokens stay."""
        self._recompute_end = max(self._recompute_end, self.computed)
        self.prompt_logprobs.clear()

    def publish_progress(self, scheduled: int = 0) -> None:
        """Replace `progress`; `scheduled` tokens are in a step and count as processed."""
        pending, cache = max(0, self.pending - scheduled), self.cache
        self.progress = Progress(
            pending=pending,
            in_prompt=pending > 1 or not self.output,
            written=len(self.output),
            cached=0 if cache is None else cache.cached + scheduled,
            started=cache is not None,
        )

    @property
    def narrowed(self) -> bool:
        """Return whether another variant was set than the one requested first."""
        return self.variant != self.request.variant

    @property
    def cache_is_mixed(self) -> bool:
        """Return whether its keys and values come from more than one variant."""
        return self.effective_variant != self.request.variant

    def may_narrow(self, variant: VariantSpec) -> bool:
        """Return whether it goes on, has no budget, and `variant` is nested in the present one.

        Before its action is final, there is nothing to narrow.
        """
        now = self.variant
        widths = zip((*variant.kv_groups, *variant.ffn), (*now.kv_groups, *now.ffn), strict=True)
        able = self.decide is None and not self.ended and self.request.kv_budget is None
        return able and variant != now and all(a <= b for a, b in widths)

    def narrow(self, variant: VariantSpec) -> None:
        """Go on with a variant that is nested in the present one, from the next step on.

        Tokens that are cached were computed with the widths so far and stay. Raises `ValueError`
        for any other variant. Called by one other thread than the engine's.
        """
        if not self.may_narrow(variant):
            names = f"'{variant.name}' is not nested in '{self.variant.name}'"
            raise ValueError(f"{names}; within an answer nothing else may change")
        self.variant = variant
