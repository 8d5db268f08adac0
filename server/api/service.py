"""The way of one request, whatever its wire format: check, decide, run, account."""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request

from controller import Analyzer, Controller, Decision, Hints, Newcomer
from policies import Objectives, Reason
from pruners.kv import served_eviction
from pruners.variant import BASE
from server.api.accounting import Accounts
from server.api.call import Call
from server.api.errors import ApiError
from server.api.narrowing import Narrowing
from server.api.protocol import SamplingBody, TrimtabHints
from server.engine.engine import Engine, EngineStoppedError, Generation, QueueFullError
from server.engine.load import LoadedModel
from server.engine.sampling import SamplingParams
from server.engine.sequence import Delta, FinishReason, GenerationRequest
from server.engine.text import StopRules

_ANALYSED_CHARACTERS = 100_000
_TURNED_AWAY = {
    Reason.LATE: "too many are waiting to answer in time, even with the smallest variant",
    Reason.FLOOR: "too many are waiting to keep both the objectives and max_loss",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt and the text that the analyzer reads."""

    tokens: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP call, tokenised: its prompts, its parameters, and what of each token is wanted."""

    prompts: list[Prompt]
    body: SamplingBody
    max_tokens: int | None  # None: up to the end of the context
    variant: str | None = None  # from a model name like `base@mix-80`
    logprobs: int | None = None
    prompt_logprobs: bool = False


class Service:
    """Everything that the routes share."""

    def __init__(
        self,
        model: LoadedModel,
        engine: Engine,
        controller: Controller,
        analyzer: Analyzer,
        accounts: Accounts,
        narrowing: Narrowing,
        longest: int,
        max_answers: int,
        kv_scorer: str,
    ) -> None:
        self.model = model
        self.engine = engine
        self.controller = controller
        self.accounts = accounts
        self._analyzer = analyzer
        self._narrowing = narrowing
        self.longest = longest  # prompt and answer together, in tokens
        self._max_answers = max_answers
        self._kv_scorer = kv_scorer

    def tokenize(self, text: str, special: bool = True) -> Prompt:
        """Text to tokens; `special` adds what the tokenizer puts around plain text."""
        tokens = self.model.tokenizer.encode(text, add_special_tokens=special)
        return Prompt(tokens, text[:_ANALYSED_CHARACTERS])

    def start(self, ask: Ask, call_id: str) -> Call:
        """Validates, decides and queues. Raises `ApiError`."""
        body, count = ask.body, ask.body.n or 1
        if len(ask.prompts) * count > self._max_answers:
            raise ApiError(400, f"at most {self._max_answers} answers in one call", "n")
        longest = max((p.tokens for p in ask.prompts), key=len, default=[])
        if not all(p.tokens for p in ask.prompts) or not longest:
            raise ApiError(400, "the prompt is empty", "prompt")
        room = self.longest - len(longest)
        max_tokens = room if ask.max_tokens is None else ask.max_tokens
        if room < 1 or max_tokens > room:
            wanted = f" and {ask.max_tokens} to write" if ask.max_tokens else ""
            raise ApiError(
                400,
                f"this model's context is {self.longest} tokens; the prompt has {len(longest)}"
                f"{wanted}",
                "prompt" if room < 1 else "max_tokens",
                "context_length_exceeded",
            )
        hints = self._hints(body.trimtab, ask.variant)
        text = max((p.text for p in ask.prompts), key=len)
        features = self._analyzer(text)
        cached = [self.engine.reusable(p.tokens) for p in ask.prompts]  # by variant
        known = next(c for c, p in zip(cached, ask.prompts, strict=True) if p.tokens is longest)
        decision = self.controller.decide(
            Newcomer(features, len(longest), max_tokens, hints, known)
        )
        self.accounts.decided(decision)
        generations: list[Generation] = []
        prompt_tokens = sum(len(p.tokens) for p in ask.prompts)
        now = int(time.time())
        call = Call(call_id, now, decision, generations, prompt_tokens, features, text, count)
        try:
            if decision.refused:
                raise QueueFullError(_TURNED_AWAY[decision.reason])
            for index in range(len(ask.prompts) * count):
                at = index // count
                reusable = cached[at].get(decision.action.variant, 0)
                request = self._request(
                    ask, ask.prompts[at], reusable, max_tokens, decision, call_id, index
                )
                generations.append(self.engine.submit(request, call.inbox))
        except (QueueFullError, EngineStoppedError) as error:
            for generation in generations:
                generation.cancel()
            self.accounts.refused(call)
            raise ApiError(
                503, str(error), retry_after=max(1.0, decision.observation.wait)
            ) from error
        self._narrowing.follow(decision)
        self._narrowing.add(call, body.trimtab.narrow)
        return call

    async def deltas(self, call: Call) -> AsyncIterator[tuple[int, Delta]]:
        """All answers' deltas as they come, with the answer's index.

        Leaving early cancels what is still running, so that its slots are free within one step.
        """
        open_answers = {generation: at for at, generation in enumerate(call.generations)}
        try:
            while open_answers:
                generation, delta = await call.inbox.get()
                index = open_answers[generation]
                if delta.finish_reason is not None:
                    del open_answers[generation]
                    self.accounts.ended(call, generation, delta.finish_reason)
                yield index, delta
        finally:
            for generation in open_answers:
                generation.cancel()
                self.accounts.ended(call, generation, FinishReason.ABORT)

    def _hints(self, hints: TrimtabHints, alias: str | None) -> Hints:
        variant = hints.variant or alias
        if variant is not None and variant not in self.model.variants:
            known = ", ".join(self.model.variants)
            raise ApiError(400, f"no variant '{variant}'; there are: {known}", "trimtab.variant")
        return Hints(
            Objectives(
                ttft=None if hints.ttft_ms is None else hints.ttft_ms / 1e3,
                tpot=None if hints.tpot_ms is None else hints.tpot_ms / 1e3,
                max_loss=hints.max_loss,
                deadline=None if hints.deadline_ms is None else hints.deadline_ms / 1e3,
            ),
            variant,
            hints.kv_budget,
        )

    def _request(
        self,
        ask: Ask,
        prompt: Prompt,
        reusable: int,
        max_tokens: int,
        decision: Decision,
        call_id: str,
        index: int,
    ) -> GenerationRequest:
        body = ask.body
        budget = decision.action.kv_budget
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return GenerationRequest(
            request_id=f"{call_id}-{index}",
            prompt=tuple(prompt.tokens),
            max_tokens=max_tokens,
            variant=self.model.variants[decision.action.variant],
            kv_budget=None if budget is None else served_eviction(budget, self._kv_scorer),
            sampling=self._sampling(body, index),
            stop=StopRules(
                tuple(stop), frozenset(body.stop_token_ids or ()), body.include_stop_str_in_output
            ),
            eos_token_ids=frozenset() if body.ignore_eos else self.model.eos_token_ids,
            min_tokens=body.min_tokens,
            logprobs=ask.logprobs,
            prompt_logprobs=ask.prompt_logprobs,
            reusable=reusable,
        )

    def _sampling(self, body: SamplingBody, index: int) -> SamplingParams:
        """User over the model's generation config over the OpenAI defaults, as vLLM has it."""
        vocab = self.model.weights.shape.vocab
        bias = body.logit_bias or {}
        if any(token >= vocab for token in bias):
            raise ApiError(400, f"logit_bias: the vocabulary has {vocab} tokens", "logit_bias")

        def pick(name: str, default: float) -> float:
            given = getattr(body, name)
            return self.model.sampling_defaults.get(name, default) if given is None else given

        return SamplingParams(
            temperature=pick("temperature", 1.0),
            top_p=pick("top_p", 1.0),
            top_k=max(0, int(pick("top_k", 0))),
            min_p=pick("min_p", 0.0),
            repetition_penalty=pick("repetition_penalty", 1.0),
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=bias,
            # Answers to one seeded call differ from each other, and each is reproducible.
            seed=None if body.seed is None else body.seed + index,
        )


def call_id_of(request: Request, prefix: str) -> str:
    """The client's `X-Request-Id` if it is a plain short one, else a fresh id."""
    given = request.headers.get("x-request-id", "")
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"{prefix}-{uuid.uuid4().hex}"


def variant_alias(service: Service, model: str | None) -> str | None:
    """The variant in a model name like `NAME@mix-80`. Raises `ApiError` 404 for other models."""
    if model is None or model in (service.model.name, BASE):
        return None
    name, _, variant = model.rpartition("@")
    if name == service.model.name and variant in service.model.variants:
        return variant
    raise ApiError(404, f"no model '{model}'; see /v1/models", "model", "model_not_found")
