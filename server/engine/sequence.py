"""One answer in the making: what was asked for, what is done, and where its events go."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from pruners.kv import Eviction
from pruners.variant import VariantSpec
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.detokenizer import StopRules, TextStream
from server.engine.sampling import Sampler, SamplingParams
from server.engine.speculation.prompt_lookup import Drafts


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability in nats, and those of the `asked` most likely tokens.

    `top` holds the token itself first, then the alternatives.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    asked: int


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What the engine needs to know of one answer. See `admission.check` for what is allowed.

    With `max_tokens` 0 the prompt is read, and scored if that is asked for, and nothing is written.
    """

    request_id: str
    prompt: tuple[int, ...]
    max_tokens: int
    variant: VariantSpec
    kv_budget: Eviction | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: StopRules = field(default_factory=StopRules)
    eos_token_ids: frozenset[int] = frozenset()  # empty: ignore_eos
    min_tokens: int = 0
    logprobs: int | None = None  # alternatives per generated token
    prompt_logprobs: bool = False
    reusable: int = 0  # tokens that the prefix cache had of the prompt when it came

    @property
    def takes_prefix(self) -> bool:
        """Whether it may start from the prefix cache: not where all of its prompt must be read."""
        return self.kv_budget is None and not self.prompt_logprobs


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step added to an answer."""

    text: str = ""
    token: int | None = None
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None


class Sequence:
    """The engine's state of one request. Only the engine thread changes it once it is admitted."""

    def __init__(
        self, request: GenerationRequest, text: TextStream, emit: Callable[[Delta], None]
    ) -> None:
        self.request = request
        self.variant = request.variant
        self.text = text
        self.emit = emit
        self.sampler = Sampler(request.sampling)
        self.output: list[int] = []
        self.history = list(request.prompt)  # and what was written since
        self.drafts = Drafts()
        self.prompt_logprobs: list[TokenLogprob] = []
        self.cache: SequenceCache | None = None
        self.cancelled = False
        self.ended = False
        self.reused = 0  # tokens taken from the prefix cache
        self._furthest = 0  # tokens that were computed before a preemption
        self._used = [(0, request.variant)]  # variants with the first tokens they computed
        forced = request.min_tokens > 0 and bool(self.final)
        # Whether the likeliest token is all that it asks of a distribution.
        self.plain = request.sampling.plain_greedy and request.logprobs is None and not forced
        self.arrived = time.monotonic()
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None

    @property
    def final(self) -> frozenset[int]:
        """Tokens that end the answer."""
        return self.request.eos_token_ids | self.request.stop.token_ids

    @property
    def tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.history)

    @property
    def computed(self) -> int:
        """Tokens whose keys and values are in the cache (or were, under a budget)."""
        cache = self.cache  # which the engine's thread may take away while others look
        return 0 if cache is None else cache.processed

    @property
    def pending(self) -> int:
        """Tokens to process before the next one can be sampled."""
        return self.tokens - self.computed

    @property
    def in_prompt(self) -> bool:
        """Still reading the prompt (or, after a preemption, what was already written)."""
        return self.pending > 1 or not self.output

    def next_tokens(self, count: int) -> list[int]:
        """The next `count` tokens to process."""
        return self.history[self.computed : self.computed + count]

    @property
    def prompt_read(self) -> bool:
        """Whether all of the prompt is computed."""
        return self.computed >= len(self.request.prompt)

    @property
    def room(self) -> int:
        """Slots that must be free before it starts, or starts again."""
        budget = self.request.kv_budget
        if budget is None:
            return self.pending
        return min(self.pending, max(len(self.request.prompt), budget.budget))

    @property
    def stretch(self) -> int:
        """Pending tokens that may be computed at once.

        After a preemption each is computed as it was before: with the same variant, and up to where
        the cache was evicted from.
        """
        done, prompt = self.computed, len(self.request.prompt)
        ends = [self.tokens, *(first for first, _ in self._used)]
        if self._used[-1][1] != self.variant:
            ends.append(self._furthest)
        budget = self.request.kv_budget
        if budget is not None and done < prompt:
            ends.append(prompt)
        elif budget is not None:
            held = 0 if self.cache is None else self.cache.cached
            least = max(1, budget.budget - budget.interval - held + 1)
            ends.append(done + least + (prompt - done - least) % budget.interval)
        return min(end for end in ends if end > done) - done

    def next_variant(self) -> VariantSpec:
        """The variant that computes the next tokens."""
        done = self.computed
        if done >= self._furthest:
            if self._used[-1][1] != self.variant:
                self._used.append((done, self.variant))
            return self.variant
        return next(variant for first, variant in reversed(self._used) if first <= done)

    def restart(self) -> None:
        """Gives up what was computed, which is computed again as it was. What is written stays."""
        self._furthest = max(self._furthest, self.computed)
        self.prompt_logprobs.clear()

    @property
    def narrowed(self) -> bool:
        """Whether its keys and values come from more than one variant."""
        return self.variant != self.request.variant

    def may_narrow(self, variant: VariantSpec) -> bool:
        """Whether it goes on without a budget, and `variant` is nested in that of now."""
        now = self.variant
        widths = zip((*variant.kv_groups, *variant.ffn), (*now.kv_groups, *now.ffn), strict=True)
        able = not self.ended and self.request.kv_budget is None
        return able and variant != now and all(a <= b for a, b in widths)

    def narrow(self, variant: VariantSpec) -> None:
        """Goes on with a variant that is nested in the one of now. Raises `ValueError` otherwise.

        What is cached was computed with the widths so far and stays.
        """
        if not self.may_narrow(variant):
            raise ValueError(
                f"'{variant.name}' is not nested in '{self.variant.name}'; within an answer "
                "nothing else may change"
            )
        self.variant = variant

    def write(self, token: int) -> None:
        """The next token of the answer."""
        self.output.append(token)
        self.history.append(token)
