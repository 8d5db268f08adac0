"""Between the text that the model writes and the events of an answer."""

from collections.abc import Iterable
from typing import Protocol

from server.api.chat.events import ChatEvent, TextDelta


class AnswerParser(Protocol):
    """Makes events of one answer's text, piece by piece; it may hold text back until it is clear.

    The events are all but `AnswerEnded` and `AnswerFailed`.
    """

    def push(self, text: str) -> Iterable[ChatEvent]:
        """Return the events of the next piece of text."""
        ...

    def end(self) -> Iterable[ChatEvent]:
        """Return the events of what was held back, since the text has ended."""
        ...

    def finish_reason(self, reason: str) -> str:
        """Return why the answer ended, which the engine calls `reason`: `tool_calls` for calls."""
        ...


class PlainAnswer:
    """Takes all text as the content of answer `index`."""

    def __init__(self, index: int) -> None:
        self._index = index

    def push(self, text: str) -> Iterable[ChatEvent]:
        """Return the text as an event."""
        return (TextDelta(self._index, text),)

    def end(self) -> Iterable[ChatEvent]:
        """Return nothing: no text is held back."""
        return ()

    def finish_reason(self, reason: str) -> str:
        """Return the engine's own reason."""
        return reason
