"""Responses: answers collected into one body, or streamed as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
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

_DONE = "data: [DONE]\n\n"
_FAILURES = (FinishReason.ERROR, FinishReason.ABORT)

T = TypeVar("T")

Deltas = AsyncGenerator[tuple[int, Delta], None]
"""The deltas of a request's answers, each with its answer's position."""


@dataclass(slots=True)
class GeneratedAnswer:
    """One answer as far as its deltas have come; `tokens` counts those that were written."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    tokens: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Append what one step of the engine wrote."""
        self.text += delta.text
        self.tokens += delta.token is not None
        if delta.logprob is not None:
            self.logprobs.append(delta.logprob)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason.value
            self.stop_reason = delta.stop_reason


async def collect(
    service: Service, active: ActiveRequest, request: Request
) -> list[GeneratedAnswer]:
    """Wait for all answers. Raise `ApiError` if one fails or the client disconnects.

    Either cancels those that are still being written.
    """
    answers = [GeneratedAnswer() for _ in active.generations]

    async def gather() -> None:
        async for index, delta in service.deltas(active):
            if delta.finish_reason in _FAILURES:
                raise _failure(service, delta)
            answers[index].add(delta)

    try:
        await _unless_disconnected(gather(), request)
    finally:
        service.close(active)  # a task that is cancelled before it begins closes nothing
    return answers


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


def _failure(service: Service, delta: Delta) -> ApiError:
    """Return the error of an answer that failed: 503 where all do, since the server is ending."""
    message = delta.error or "the answer was aborted"
    if service.engine.alive:
        return ApiError(500, message)
    return ApiError(503, message, retry_after=1)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EventStream(StreamingResponse):
    """Server-sent events of a request's answers, which are closed however the stream ends."""

    def __init__(self, events: AsyncIterator[str], service: Service, active: ActiveRequest) -> None:
        headers = {**active.headers(), "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._service = service
        self._active = active

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. A client may disconnect before the first, which closes nothing."""
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
    tail: Callable[[list[GeneratedAnswer]], Iterable[dict[str, object]]] = lambda _: (),
) -> Response:
    """Stream `head`, then the `chunks` of every delta, then `tail`, then `[DONE]`.

    It begins once the decision is final, since headers and first chunk name the variant. `chunks`
    gets a delta's answer by its position and as it is after the delta. A failure in mid-stream is
    sent as an event that holds an `error`, as clients expect.
    """
    deltas = service.deltas(active)
    first = await _first_delta(service, active, request, deltas)

    async def events() -> AsyncIterator[str]:
        answers = [GeneratedAnswer() for _ in active.generations]
        try:
            for chunk in head:
                yield _event(chunk)
            async for index, delta in _chained(first, deltas):
                answers[index].add(delta)
                if delta.finish_reason in _FAILURES:
                    failure = _failure(service, delta)
                    yield _event(envelope(failure.status, failure.message))
                    break
                for chunk in chunks(index, delta, answers[index]):
                    yield _event(chunk)
            else:
                for chunk in tail(answers):
                    yield _event(chunk)
            yield _DONE
        finally:
            await deltas.aclose()

    return _EventStream(events(), service, active)


async def _first_delta(
    service: Service, active: ActiveRequest, request: Request, deltas: Deltas
) -> list[tuple[int, Delta]]:
    """Wait for the first delta where the decision is not final without it.

    Raise `ApiError` if the client disconnects meanwhile.
    """
    if active.final:
        return []

    async def wait() -> tuple[int, Delta]:
        return await anext(deltas)

    try:
        return [await _unless_disconnected(wait(), request)]
    except BaseException:
        service.close(active)
        raise


async def _chained(first: list[tuple[int, Delta]], others: Deltas) -> Deltas:
    for one in first:
        yield one
    async for one in others:
        yield one


async def respond(
    active: ActiveRequest,
    head: dict[str, object],
    choice: Callable[[int, GeneratedAnswer], dict[str, object]],
    answers: list[GeneratedAnswer],
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
) -> Callable[[list[GeneratedAnswer]], Iterable[dict[str, object]]]:
    """Return the tail of a stream: with `include_usage` one chunk without choices, else nothing.

    `common` are the fields of every chunk.
    """

    def tail(answers: list[GeneratedAnswer]) -> Iterable[dict[str, object]]:
        if options is not None and options.include_usage:
            yield {**common, "choices": [], "usage": usage(active, answers)}

    return tail


def usage(active: ActiveRequest, answers: list[GeneratedAnswer]) -> dict[str, object]:
    """Return the `usage` object. A prompt counts once, whatever the number of its answers."""
    completion_tokens = sum(answer.tokens for answer in answers)
    firsts = [generation.sequence for generation in active.generations[:: active.choices]]
    return {
        "prompt_tokens": active.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": active.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(min(s.reused, len(s.request.prompt)) for s in firsts)
        },
    }


def _event(chunk: dict[str, object]) -> str:
    """Return one event, in ASCII: many clients end a line at U+2028 or U+0085, too."""
    return f"data: {json.dumps(chunk)}\n\n"
