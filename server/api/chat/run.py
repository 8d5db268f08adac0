"""A chat that is being answered: its events as they come, or its whole answers."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from server.api.active_request import ActiveRequest
from server.api.chat.answer import ChatAnswer
from server.api.chat.body import ChatBody
from server.api.chat.events import AnswerEnded, AnswerFailed, ChatEvent
from server.api.chat.parser import AnswerParser
from server.api.errors import ApiError
from server.api.responses import (
    FAILURES,
    Deltas,
    EventStream,
    failure_of,
    ready_deltas,
    until_disconnected,
)
from server.api.service import Service
from server.engine.sequence import Delta


@dataclass(slots=True)
class ChatRun:
    """The answers to one chat. Use `answers`, or `stream` with a writer that reads `events`.

    `parsers` has one for each answer; `prompt` are the tokens of the chat. `progress` are the
    answers as far as `events` has told; their tokens and log-probabilities may be ahead of their
    text.
    """

    service: Service
    active: ActiveRequest
    request: Request
    body: ChatBody
    parsers: list[AnswerParser]
    prompt: list[int]
    progress: list[ChatAnswer] = field(init=False)
    _deltas: Deltas | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Start with empty answers."""
        self.progress = [ChatAnswer() for _ in self.parsers]

    async def answers(self) -> list[ChatAnswer]:
        """Wait for all answers. Raise `ApiError` if one fails or the client disconnects."""

        async def gather() -> None:
            async for event in self.events():
                if isinstance(event, AnswerFailed):
                    raise ApiError(event.status, event.message, retry_after=event.retry_after)

        await until_disconnected(gather(), self.service, self.active, self.request)
        return self.progress

    async def stream(
        self, texts: AsyncIterator[str], media_type: str = "text/event-stream"
    ) -> Response:
        """Return a response that sends `texts`, which a writer makes of `events`.

        It begins once the action is final, so that headers and first text can name the variant.
        Raise `ApiError` if the client disconnects before.
        """
        self._deltas = await ready_deltas(self.service, self.active, self.request)
        return EventStream(texts, self.service, self.active, media_type)

    async def events(self) -> AsyncIterator[ChatEvent]:
        """Yield what happens, once, up to a failure. Leaving early cancels the rest."""
        deltas = self._deltas or self.service.deltas(self.active)
        try:
            async for index, delta in deltas:
                if delta.finish_reason in FAILURES:
                    error = failure_of(self.service, delta)
                    yield AnswerFailed(index, error.status, error.message, error.retry_after)
                    return
                self.progress[index].count(delta)
                for event in self._parsed(index, delta):
                    self.progress[index].apply(event)
                    yield event
        finally:
            await deltas.aclose()

    def _parsed(self, index: int, delta: Delta) -> Iterator[ChatEvent]:
        """Yield the events of one step of the engine."""
        parser = self.parsers[index]
        if delta.text:
            yield from parser.push(delta.text)
        if delta.finish_reason is not None:
            yield from parser.end()
            reason = parser.finish_reason(delta.finish_reason.value)
            yield AnswerEnded(index, reason, delta.stop_reason)
