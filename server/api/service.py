"""The way of one request, whatever its wire format: check, decide, run, account."""

import time
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from starlette.requests import Request

from controller import Analyzer, Controller, IncomingRequest, RequestPreferences
from policies import Objectives, Reason
from pruners.kv import make_eviction
from pruners.variant import BASE
from server.api.accounting import Accounts
from server.api.call import Call
from server.api.errors import ApiError
from server.api.narrowing import Narrowing
from server.api.prompt.reader import Encoding, Prompt, PromptReader
from server.api.schemas import SamplingBody, TrimtabHints
from server.engine.admission import InvalidRequestError
from server.engine.detokenizer import StopRules
from server.engine.engine import Engine, EngineStoppedError, QueueFullError
from server.engine.loading.load import LoadedModel
from server.engine.sampling import SamplingParams
from server.engine.sequence import Delta, FinishReason, GenerationRequest

_TURNED_AWAY = {
    Reason.LATE: "too many are waiting to answer in time, even with the smallest variant",
    Reason.FLOOR: "too many are waiting to keep both the objectives and max_loss",
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is settled before anything is decided."""

    longest: Prompt
    max_tokens: int
    hints: RequestPreferences
    sampling: tuple[SamplingParams, ...]  # by the answer's index
    stop: StopRules


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP call, tokenised: its prompts, its parameters, and what of each token is wanted.

    `default_tokens` holds where `max_tokens` is None, and is cut to the room that the prompt
    leaves; None stands for all of that room.
    """

    prompts: list[Prompt]
    body: SamplingBody
    max_tokens: int | None
    default_tokens: int | None = None
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
        prompts: PromptReader,
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
        self.prompts = prompts

    def check_count(self, prompts: int, body: SamplingBody) -> None:
        """Raise `ApiError` for more answers than one call may ask for. Before any work on them."""
        if prompts * (body.n or 1) > self._max_answers:
            raise ApiError(400, f"at most {self._max_answers} answers in one call", "n")

    def start(self, ask: Ask, call_id: str) -> Call:
        """Validate, then decide, then queue. Raise `ApiError`.

        What is invalid is found before the decision. Whatever goes wrong behind it is counted as
        refused, so that each decision has an end.
        """
        plan = self._plan(ask)
        text = max((p.text for p in ask.prompts), key=len)
        features = self._analyzer(text)
        cached = [self.engine.reusable(p.tokens) for p in ask.prompts]  # by variant
        known = next(c for c, p in zip(cached, ask.prompts, strict=True) if p is plan.longest)
        decision = self.controller.decide(
            IncomingRequest(features, len(plan.longest.tokens), plan.max_tokens, plan.hints, known)
        )
        self.accounts.decided(decision)
        prompt_tokens = sum(len(p.tokens) for p in ask.prompts)
        now, count = int(time.time()), ask.body.n or 1
        call = Call(call_id, now, decision, [], prompt_tokens, features, text, count)
        try:
            self._submit(ask, plan, call, cached)
        except Exception as error:
            for generation in call.generations:
                generation.cancel()
            self.accounts.refused(call)
            if isinstance(error, (QueueFullError, EngineStoppedError)):
                wait = max(1.0, decision.observation.wait)
                raise ApiError(503, str(error), retry_after=wait) from error
            if isinstance(error, InvalidRequestError):
                raise ApiError(400, str(error)) from error
            raise
        self._narrowing.follow(decision)
        self._narrowing.add(call, ask.body.trimtab.narrow)
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

    def _plan(self, ask: Ask) -> _Plan:
        """All that can be wrong with a call, found before it costs anybody else anything."""
        body = ask.body
        count = body.n or 1
        self.check_count(len(ask.prompts), body)
        if not ask.prompts or not all(p.tokens for p in ask.prompts):
            raise ApiError(400, "the prompt is empty", "prompt")
        longest = max(ask.prompts, key=lambda p: len(p.tokens))
        max_tokens = self._max_tokens(ask, len(longest.tokens))
        if body.min_tokens > max_tokens:
            raise ApiError(
                400, f"min_tokens is above the {max_tokens} tokens to write", "min_tokens"
            )
        self._check_ids("stop_token_ids", body.stop_token_ids or ())
        self._check_ids("logit_bias", body.logit_bias or ())
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return _Plan(
            longest,
            max_tokens,
            self._hints(body.trimtab, ask.variant),
            tuple(self._sampling(body, index) for index in range(len(ask.prompts) * count)),
            StopRules(
                tuple(stop), frozenset(body.stop_token_ids or ()), body.include_stop_str_in_output
            ),
        )

    def _max_tokens(self, ask: Ask, prompt: int) -> int:
        """How many tokens an answer may have. Raise `ApiError` if the context has no room."""
        room = self.longest - prompt
        if room < (1 if ask.max_tokens is None else ask.max_tokens):
            wanted = f" and {ask.max_tokens} to write" if ask.max_tokens else ""
            raise ApiError(
                400,
                f"this model's context is {self.longest} tokens; the prompt has {prompt}{wanted}",
                "prompt" if room < 1 else "max_tokens",
                "context_length_exceeded",
            )
        if ask.max_tokens is not None:
            return ask.max_tokens
        return room if ask.default_tokens is None else min(room, ask.default_tokens)

    def _check_ids(self, name: str, tokens: Iterable[int]) -> None:
        vocab = self.model.weights.shape.vocab
        wrong = next((token for token in tokens if token >= vocab), None)
        if wrong is not None:
            raise ApiError(400, f"{name}: no token {wrong}; the vocabulary has {vocab}", name)

    def _submit(self, ask: Ask, plan: _Plan, call: Call, cached: list[dict[str, int]]) -> None:
        """Queue all answers of a call. Raise `QueueFullError` or `EngineStoppedError`."""
        decision, body = call.decision, ask.body
        if decision.refused:
            raise QueueFullError(_TURNED_AWAY[decision.reason])
        variant, budget = decision.action.variant, decision.action.kv_budget
        for index, sampling in enumerate(plan.sampling):
            at = index // (body.n or 1)
            request = GenerationRequest(
                request_id=f"{call.call_id}-{index}",
                prompt=tuple(ask.prompts[at].tokens),
                max_tokens=plan.max_tokens,
                variant=self.model.variants[variant],
                kv_budget=None if budget is None else make_eviction(budget, self._kv_scorer),
                sampling=sampling,
                stop=plan.stop,
                eos_token_ids=frozenset() if body.ignore_eos else self.model.eos_token_ids,
                min_tokens=body.min_tokens,
                logprobs=ask.logprobs,
                prompt_logprobs=ask.prompt_logprobs,
                reusable=cached[at].get(variant, 0),
            )
            call.generations.append(self.engine.submit(request, call.inbox))

    def _hints(self, hints: TrimtabHints, alias: str | None) -> RequestPreferences:
        variant = alias if hints.variant is None else hints.variant
        if variant is not None and variant not in self.model.variants:
            known = ", ".join(self.model.variants)
            raise ApiError(400, f"no variant '{variant}'; there are: {known}", "trimtab.variant")
        return RequestPreferences(
            Objectives(
                ttft=None if hints.ttft_ms is None else hints.ttft_ms / 1e3,
                tpot=None if hints.tpot_ms is None else hints.tpot_ms / 1e3,
                max_loss=hints.max_loss,
                deadline=None if hints.deadline_ms is None else hints.deadline_ms / 1e3,
            ),
            variant,
            hints.kv_budget,
        )

    def _sampling(self, body: SamplingBody, index: int) -> SamplingParams:
        """User over the model's generation config over the OpenAI defaults, as vLLM has it."""

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
            logit_bias=body.logit_bias or {},
            # Answers to one seeded call differ from each other, and each is reproducible.
            seed=None if body.seed is None else body.seed + index,
        )


def call_id_of(request: Request, prefix: str) -> str:
    """The client's `X-Request-Id` if it is a plain short one, else a fresh id."""
    given = request.headers.get("x-request-id", "")
    if given and len(given) <= 128 and given.isascii() and given.isprintable():
        return given
    return f"{prefix}-{uuid.uuid4().hex}"


def encoding(body: SamplingBody, special: bool) -> Encoding:
    """How a body wants its text encoded; `special` is the route's habit."""
    given = body.add_special_tokens
    return Encoding(special if given is None else given, body.trimtab.plain_text)


def variant_alias(service: Service, model: str | None) -> str | None:
    """The variant in a model name like `NAME@mix-80`. Raises `ApiError` 404 for other models."""
    if model is None or model in (service.model.name, BASE):
        return None
    name, _, variant = model.rpartition("@")
    if name == service.model.name and variant in service.model.variants:
        return variant
    raise ApiError(404, f"no model '{model}'; see /v1/models", "model", "model_not_found")
