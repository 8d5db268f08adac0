"""The way of a request, whatever its wire format: validate, decide, submit, stream, log."""

import math
import time
from collections.abc import AsyncGenerator, Sequence

from controller import Analyzer, Controller, IncomingRequest
from policies import Reason
from server.api.active_request import ActiveRequest
from server.api.caller import Caller
from server.api.chat.body import ChatBody
from server.api.errors import ApiError
from server.api.late_decision import LateDecision
from server.api.narrowing import AnswerNarrowing
from server.api.prompt.processor import EncodingOptions
from server.api.request_builder import ParsedRequest, RequestBuilder, ValidatedRequest
from server.api.request_log import RequestLog
from server.api.schemas import SamplingBody
from server.engine.admission import InvalidRequestError
from server.engine.cache.prefix_cache import Reusable
from server.engine.engine import (
    Engine,
    EngineStoppedError,
    Generation,
    QueueFullError,
    QueuePlace,
)
from server.engine.loading.load import LoadedModel
from server.engine.sequence import Delta, FinishReason

_REFUSALS = {
    Reason.LATE: "too many are waiting to answer a request of this size in time",
    Reason.FLOOR: "too many are waiting to keep both the objectives and max_loss",
}
_CHARACTERS_PER_TOKEN = 4  # of common text, before it is tokenised


class Service:
    """Takes requests from the routes to the engine and their answers back.

    All methods are called in the event loop. What is decided when a request arrives is an estimate,
    by which it may be refused; its action is final when the engine starts to read its prompt.
    """

    def __init__(
        self,
        engine: Engine,
        controller: Controller,
        analyzer: Analyzer,
        builder: RequestBuilder,
        request_log: RequestLog,
        narrowing: AnswerNarrowing,
    ) -> None:
        self.engine = engine
        self.controller = controller
        self.builder = builder
        self.request_log = request_log
        self.max_wait = math.inf  # predicted seconds; who would wait longer is refused
        self._analyzer = analyzer
        self._narrowing = narrowing

    @property
    def model(self) -> LoadedModel:
        """The model that is served."""
        return self.builder.model

    @property
    def served_name(self) -> str:
        """The name of the model in answers."""
        return self.builder.names.served

    def keep_place(self, caller: Caller, tokens: Sequence[int]) -> None:
        """Keep a place in the queue for a request while its prompts are made. Raise `ApiError` 503.

        So it counts before its tokens are known: `tokens` are estimates, one for each prompt. No
        prompt counts more than the context, beyond which it is refused as invalid later.
        `start`, or the end of the HTTP request, gives the place up.
        """
        most = self.builder.context_tokens
        place = QueuePlace(len(tokens), sum(min(count, most) for count in tokens), caller.client)
        try:
            self.engine.keep_place(place)
        except (QueueFullError, EngineStoppedError) as error:
            raise self._unavailable(error) from error
        caller.notes.place = place

    def start(self, parsed: ParsedRequest, caller: Caller) -> ActiveRequest:
        """Validate a request, decide, and queue its answers, all at once. Raise `ApiError`.

        What is invalid is found before the decision. What goes wrong after it is logged as a
        refusal, so that each decision has an end.
        """
        caller.notes.give_up_place()
        valid = self.builder.validate(parsed, caller)
        self._check_fits(parsed)
        reusable = [self.engine.reusable(prompt.tokens) for prompt in parsed.prompts]
        incoming, text = self._incoming(valid, reusable[valid.longest], caller.client)
        active = caller.notes.active = self._decide(valid, incoming, text, caller)
        try:
            self._submit(valid, active, incoming, reusable)
        except Exception as error:
            self.request_log.log_decision(active)
            self.request_log.log_refusal(active)
            if isinstance(error, QueueFullError | EngineStoppedError):
                raise self._unavailable(error, active.first.observation.wait) from error
            if isinstance(error, InvalidRequestError):
                raise ApiError(400, str(error)) from error
            raise
        self._narrowing.apply(active.first, self.model.variants[active.first.action.variant])
        self._narrowing.register(active, parsed.body.trimtab.narrow)
        return active

    async def deltas(self, active: ActiveRequest) -> AsyncGenerator[tuple[int, Delta], None]:
        """Yield the deltas of all answers as they come, each with its answer's position.

        The first of them says that the decision is final, though it may be empty.
        Leaving early cancels what is still running, so that its slots are free within one step.
        """
        try:
            while active.unfinished:
                generation, delta = await active.inbox.get()
                index = active.unfinished[generation]
                self.request_log.log_decision(active)
                if delta.token is not None:
                    self.request_log.log_token(active, generation)
                if delta.finish_reason is not None:
                    self._end(active, generation, delta.finish_reason)
                yield index, delta
        finally:
            self.close(active)

    def close(self, active: ActiveRequest) -> None:
        """Cancel the answers that have not ended, and log them as aborted.

        May be called at any time, and more than once.
        """
        for generation in tuple(active.unfinished):
            generation.cancel()
            self._end(active, generation, FinishReason.ABORT)

    def _end(self, active: ActiveRequest, generation: Generation, reason: FinishReason) -> None:
        del active.unfinished[generation]
        self.request_log.log_decision(active)
        self.request_log.log_answer(active, generation, reason)

    def _incoming(
        self, valid: ValidatedRequest, reusable: Reusable, client: str
    ) -> tuple[IncomingRequest, str]:
        """Return what the controller is told, and the text whose features those are."""
        text = max((prompt.text for prompt in valid.parsed.prompts), key=len)
        tokens = valid.longest_prompt.tokens
        features = self._analyzer(text)
        incoming = IncomingRequest(
            features,
            len(tokens),
            valid.max_tokens,
            valid.preferences,
            reusable,
            self.controller.catalogue.full_from(tokens),
            client,
        )
        return incoming, text

    def _decide(
        self, valid: ValidatedRequest, incoming: IncomingRequest, text: str, caller: Caller
    ) -> ActiveRequest:
        """Ask the controller for one estimate for all answers, by the longest prompt."""
        decision = self.controller.decide(incoming)
        return ActiveRequest(
            caller=caller,
            operation="chat" if isinstance(valid.parsed.body, ChatBody) else "text_completion",
            created=int(time.time()),
            decision=decision,
            features=incoming.features,
            text=text,
            prompt_tokens=sum(len(prompt.tokens) for prompt in valid.parsed.prompts),
            choices=valid.parsed.choices,
            shape=self.model.weights.shape,
            final=decision.refused or decision.only_choice,
        )

    def _submit(
        self,
        valid: ValidatedRequest,
        active: ActiveRequest,
        incoming: IncomingRequest,
        reusable: list[Reusable],
    ) -> None:
        """Queue all answers.

        Raise `QueueFullError` or `EngineStoppedError`.
        """
        decision = active.decision
        if decision.refused:
            raise QueueFullError(_REFUSALS[decision.reason])
        wait = decision.observation.wait
        if wait > self.max_wait:
            raise QueueFullError(f"the queue takes {wait:.0f} s, the limit is {self.max_wait:g} s")
        decide = None
        if not active.final:
            prompt = valid.longest_prompt.tokens
            decide = LateDecision(
                active, incoming, prompt, self.engine, self.controller, self.builder
            )
        terms = self.builder.terms(valid, active.caller, decision.work)
        requests = self.builder.build(valid, decision.action, active.request_id, reusable, terms)
        for generation in self.engine.submit_all(requests, active.inbox, decide):
            active.add(generation)

    def _check_fits(self, parsed: ParsedRequest) -> None:
        """Raise `ApiError` 400 if all answers of a request could never wait together."""
        tokens = sum(len(prompt.tokens) for prompt in parsed.prompts)
        try:
            self.engine.check_fits(len(parsed.prompts) * parsed.choices, tokens * parsed.choices)
        except InvalidRequestError as error:
            raise ApiError(400, str(error)) from error

    def _unavailable(self, error: Exception, wait: float | None = None) -> ApiError:
        """Return what a client is told that may try again after the predicted wait."""
        predicted = self.controller.predict_wait() if wait is None else wait
        return ApiError(503, str(error), retry_after=predicted)


def estimated_tokens(text: str) -> int:
    """Return how many tokens a text may have."""
    return len(text) // _CHARACTERS_PER_TOKEN


def encoding_options(body: SamplingBody, special_tokens: bool) -> EncodingOptions:
    """Return how a body's text is encoded; `special_tokens` is the route's default.

    Where a prompt is to be truncated to what fits, that leaves room for `max_tokens`.
    """
    requested, last = body.add_special_tokens, body.truncate_prompt_tokens
    if last == -1:
        last = -(body.max_tokens or 1)
    special = special_tokens if requested is None else requested
    return EncodingOptions(special, body.trimtab.plain_text, last)


def variant_in_model_name(service: Service, model: str | None) -> str | None:
    """Return the variant in a model name like `NAME@mix-80`, None where there is none.

    Raise `ApiError` 404 for other models.
    """
    return service.builder.names.variant_of(model, service.model.variants)
