"""Collecting answers for a plain response, and sending them as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from server.api.errors import ApiError, envelope
from server.api.schemas import StreamOptions
from server.api.service import Call, Service
from server.engine.sequence import Delta, FinishReason, TokenLogprob

DONE = "data: [DONE]\n\n"
_FAILED = (FinishReason.ERROR, FinishReason.ABORT)


@dataclass(slots=True)
class Answer:
    """One finished answer."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    tokens: int = 0
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Appends what one step brought."""
        self.text += delta.text
        self.tokens += delta.token is not None
        if delta.logprob is not None:
            self.logprobs.append(delta.logprob)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason.value
            self.stop_reason = delta.stop_reason


async def collect(service: Service, call: Call, request: Request) -> list[Answer]:
    """All answers of a call; a client that hangs up cancels them. Raises `ApiError`."""
    answers = [Answer() for _ in call.generations]

    async def gather() -> None:
        async for index, delta in service.deltas(call):
            if delta.finish_reason in _FAILED:
                raise _failure(service, delta)
            answers[index].add(delta)

    work = asyncio.create_task(gather())
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ApiError(499, "the client closed the connection")
        await work
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
    return answers


def _failure(service: Service, delta: Delta) -> ApiError:
    """Return the error of an answer that failed: 503 where all do, since the server is ending."""
    message = delta.error or "the answer was aborted"
    if service.engine.alive:
        return ApiError(500, message)
    return ApiError(503, message, retry_after=1)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def stream(
    service: Service,
    call: Call,
    chunks: Callable[[int, Delta, Answer], Iterable[dict[str, object]]],
    head: Iterable[dict[str, object]] = (),
    tail: Callable[[list[Answer]], Iterable[dict[str, object]]] = lambda _: (),
) -> StreamingResponse:
    """Server-sent events: `head`, then `chunks` of every delta, then `tail`, then `[DONE]`.

    A failure in mid-stream is sent as an event holding an `error`, as clients expect.
    """

    async def events() -> AsyncIterator[str]:
        answers = [Answer() for _ in call.generations]
        deltas = service.deltas(call)
        try:
            for chunk in head:
                yield _event(chunk)
            async for index, delta in deltas:
                answers[index].add(delta)
                if delta.finish_reason in _FAILED:
                    failure = _failure(service, delta)
                    yield _event(envelope(failure.status, failure.message))
                    break
                for chunk in chunks(index, delta, answers[index]):
                    yield _event(chunk)
            else:
                for chunk in tail(answers):
                    yield _event(chunk)
            yield DONE
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]

    headers = {**call.headers(), "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(events(), media_type="text/event-stream", headers=headers)


async def respond(
    call: Call,
    head: dict[str, object],
    choice: Callable[[int, Answer], dict[str, object]],
    answers: list[Answer],
    large: bool,
) -> Response:
    """A plain response: `head`, and a choice of each answer.

    A `large` one, as log-probabilities make it, is put together beside the event loop. A choice is
    written at a time, since other threads wait meanwhile.
    """

    def written() -> bytes:
        choices = [_json(choice(index, answer)) for index, answer in enumerate(answers)]
        return b'%s,"choices":[%s]}' % (_json(head)[:-1], b",".join(choices))

    body = await asyncio.to_thread(written) if large else written()
    return Response(body, media_type="application/json", headers=call.headers())


def _json(value: dict[str, object]) -> bytes:
    return to_json(value, inf_nan_mode="null")


def usage_tail(
    call: Call, common: dict[str, object], options: StreamOptions | None
) -> Callable[[list[Answer]], Iterable[dict[str, object]]]:
    """The last chunk of a stream that asked for `include_usage`: no choices, only the counts."""

    def tail(answers: list[Answer]) -> Iterable[dict[str, object]]:
        if options is not None and options.include_usage:
            yield {**common, "choices": [], "usage": usage(call, answers)}

    return tail


def usage(call: Call, answers: list[Answer]) -> dict[str, object]:
    """The `usage` object. A prompt counts once, whatever the number of its answers."""
    written = sum(answer.tokens for answer in answers)
    firsts = [generation.sequence for generation in call.generations[:: call.choices]]
    reused = sum(min(first.reused, len(first.request.prompt)) for first in firsts)
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": call.prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def _event(chunk: dict[str, object]) -> str:
    """One event, in ASCII: many clients end a line at U+2028 or U+0085, too."""
    return f"data: {json.dumps(chunk)}\n\n"
