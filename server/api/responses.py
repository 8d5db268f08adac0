"""Responses: answers collected into one body, or streamed as server-sent events."""

import asyncio
import json
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.active_request import ActiveRequest
from server.api.error_envelope import envelope
from server.api.errors import ApiError
from server.api.schemas import StreamOptions
from server.api.service import Service
from server.engine.sequence import Delta, FinishReason, TokenLogprob

DONE = "data: [DONE]\n\n"
"""The last event of a stream in OpenAI's format."""
FAILURES = (FinishReason.ERROR, FinishReason.ABORT, FinishReason.REFUSED)
"""How answers end that are not whole."""

T = TypeVar("T")

Deltas = AsyncGenerator[tuple[int, Delta], None]
"""The deltas of a request's answers, each with its answer's position."""


@dataclass(slots=True)
class GeneratedAnswer:
    """One answer as far as its deltas have come; `token_ids` are those that were written."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    @property
    def tokens(self) -> int:
        """The number of tokens that were written."""
        return len(self.token_ids)

    def add(self, delta: Delta) -> None:
        """Append what one step of the engine wrote."""
        self.text += delta.text
        self.count(delta)

    def count(self, delta: Delta) -> None:
        """Append all that one step of the engine wrote but its text."""
        if delta.token is not None:
            self.token_ids.append(delta.token)
        if delta.logprob is not None:
            self.logprobs.append(delta.logprob)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason.value
            self.stop_reason = delta.stop_reason


AnswerT = TypeVar("AnswerT", bound=GeneratedAnswer)


async def collect(
    service: Service, active: ActiveRequest, request: Request
) -> list[GeneratedAnswer]:
    """Wait for all answers. Raise `ApiError` if one fails or the client disconnects.

    Either cancels those that are still being written.
    """
    answers = [GeneratedAnswer() for _ in active.generations]

    async def gather() -> None:
        async for index, delta in service.deltas(active):
            if delta.finish_reason in FAILURES:
                raise failure_of(service, delta)
            answers[index].add(delta)

    await until_disconnected(gather(), service, active, request)
    return answers


async def until_disconnected(
    work: Coroutine[Any, Any, T], service: Service, active: ActiveRequest, request: Request
) -> T:
    """Return what `work`, which reads all deltas, returns, and close the request.

    Raise `ApiError` if the client disconnects.
    """
    try:
        return await _unless_disconnected(work, request)
    finally:
        service.close(active)  # a task that is cancelled before it begins closes nothing


async def _unless_disconnected(work: Coroutine[Any, Any, T], request: Request) -> T:
    """Return what `work` returns. Cancel it and raise `ApiError` if the client disconnects."""
    working = asyncio.create_task(work)
    disconnect = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client closed the connection")
        return await working
    finally:
        for task in (working, disconnect):
            task.cancel()
        await asyncio.gather(working, disconnect, return_exceptions=True)


def failure_of(service: Service, delta: Delta) -> ApiError:
    """Return the error of an answer that failed: 503 where that is no fault of the request."""
    message = delta.error or "the answer was aborted"
    if delta.finish_reason is FinishReason.REFUSED:
        return ApiError(503, message, retry_after=service.controller.predict_wait())
    if service.engine.alive:
        return ApiError(500, message)
    return ApiError(503, message, retry_after=1)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """A stream of a request's answers, which are closed however the stream ends."""

    def __init__(
        self,
        texts: AsyncIterator[str],
        service: Service,
        active: ActiveRequest,
        media_type: str = "text/event-stream",
    ) -> None:
        headers = {**active.headers(), "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(texts, media_type=media_type, headers=headers)
        self._service = service
        self._active = active

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the texts. A client may disconnect before the first, which closes nothing."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._service.close(self._active)


async def stream(
    service: Service,
    active: ActiveRequest,
    request: Request,
    chunks: Callable[[int, Delta, GeneratedAnswer], Iterable[dict[str, object]]],
    head: Iterable[dict[str, object]] = (),
    tail: Callable[[Sequence[GeneratedAnswer]], Iterable[dict[str, object]]] = lambda _: (),
) -> Response:
    """Stream `head`, then the `chunks` of every delta, then `tail`, then `[DONE]`.

    It begins once the decision is final, since headers and first chunk name the variant. `chunks`
    gets a delta's answer by its position and as it is after the delta. A failure in mid-stream is
    sent as an event that holds an `error`, as clients expect.
    """
    deltas = await ready_deltas(service, active, request)

    async def events() -> AsyncIterator[str]:
        answers = [GeneratedAnswer() for _ in active.generations]
        try:
            for chunk in head:
                yield sse(chunk)
            async for index, delta in deltas:
                answers[index].add(delta)
                if delta.finish_reason in FAILURES:
                    failure = failure_of(service, delta)
                    yield sse(envelope(failure.status, failure.message))
                    break
                for chunk in chunks(index, delta, answers[index]):
                    yield sse(chunk)
            else:
                for chunk in tail(answers):
                    yield sse(chunk)
            yield DONE
        finally:
            await deltas.aclose()

    return EventStream(events(), service, active)


async def ready_deltas(service: Service, active: ActiveRequest, request: Request) -> Deltas:
    """Return the deltas of a request, once its decision is final.

    Raise `ApiError` if the client disconnects meanwhile.
    """
    deltas = service.deltas(active)
    if active.final:
        return deltas

    async def first() -> tuple[int, Delta]:
        return await anext(deltas)

    try:
        return _after(await _unless_disconnected(first(), request), deltas)
    except BaseException:
        service.close(active)
        raise


async def _after(first: tuple[int, Delta], others: Deltas) -> Deltas:
    try:
        yield first
        async for other in others:
            yield other
    finally:
        await others.aclose()


async def respond(
    active: ActiveRequest,
    head: dict[str, object],
    choice: Callable[[int, AnswerT], dict[str, object]],
    answers: Sequence[AnswerT],
    large: bool,
) -> Response:
    """Return a plain response: `head`, and a `choice` of each answer.

    A `large` one, as log-probabilities make it, is serialised in another thread, beside the event
    loop: one choice at a time, so that other threads get their turn.
    """

    def serialise() -> bytes:
        choices = [_json(choice(index, answer)) for index, answer in enumerate(answers)]
        return b'%s,"choices":[%s]}' % (_json(head)[:-1], b",".join(choices))

    body = await asyncio.to_thread(serialise) if large else serialise()
    return Response(body, media_type="application/json", headers=active.headers())


def _json(value: dict[str, object]) -> bytes:
    return to_json(value, inf_nan_mode="null")


def usage_tail(
    active: ActiveRequest, common: dict[str, object], options: StreamOptions | None
) -> Callable[[Sequence[GeneratedAnswer]], Iterable[dict[str, object]]]:
    """Return the tail of a stream: with `include_usage` one chunk without choices, else nothing.

    `common` are the fields of every chunk.
    """

    def tail(answers: Sequence[GeneratedAnswer]) -> Iterable[dict[str, object]]:
        if options is not None and options.include_usage:
            yield {**common, "choices": [], "usage": usage(active, answers)}

    return tail


def counts_continuously(options: StreamOptions | None) -> bool:
    """Whether each chunk has the usage so far; as in vLLM, not without `include_usage`."""
    return bool(options and options.include_usage and options.continuous_usage_stats)


def usage(active: ActiveRequest, answers: Iterable[GeneratedAnswer]) -> dict[str, object]:
    """Return the `usage` object. A prompt counts once, whatever the number of its answers.

    `trimtab_loss` is the predicted loss as a plain number, which gateways can read.
    """
    completion_tokens = sum(answer.tokens for answer in answers)
    firsts = [generation.sequence for generation in active.generations[:: active.choices]]
    found: dict[str, object] = {
        "prompt_tokens": active.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": active.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(min(s.reused, len(s.request.prompt)) for s in firsts)
        },
    }
    loss = active.decision.chosen.loss
    return found if loss is None else {**found, "trimtab_loss": loss}


def sse(data: Mapping[str, object], event: str | None = None) -> str:
    """Return a server-sent event, with a name if `event` is given.

    It is ASCII: many clients end a line at U+2028 or U+0085, too.
    """
    name = "" if event is None else f"event: {event}\n"
    return f"{name}data: {json.dumps(data)}\n\n"
