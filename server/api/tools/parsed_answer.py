"""Events of one answer to a chat, made of its text by the parsers of calls and reasoning."""

import uuid
from collections.abc import Iterator

from server.api.chat.events import (
    ChatEvent,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallBegun,
    ToolCallBroken,
)
from server.api.tools.answer_splitter import AnswerSplitter
from server.api.tools.history import short_id
from server.api.tools.pieces import (
    CallArguments,
    CallBegun,
    CallBroken,
    ContentText,
    Piece,
    ReasoningText,
)


class ParsedAnswer:
    """Answer `index`, which begins with `beginning`: text that the prompt ends with.

    Its calls get short ids if the model's template asks for these. Reasoning is left out unless
    `shows_reasoning`.
    """

    def __init__(
        self,
        index: int,
        splitter: AnswerSplitter,
        beginning: str,
        short_ids: bool,
        shows_reasoning: bool,
    ) -> None:
        self._index = index
        self._splitter = splitter
        self._unread = beginning
        self._short_ids = short_ids
        self._shows_reasoning = shows_reasoning

    def push(self, text: str) -> Iterator[ChatEvent]:
        """Yield the events of the next piece of text."""
        text, self._unread = self._unread + text, ""
        yield from self._events(self._splitter.push(text))

    def end(self) -> Iterator[ChatEvent]:
        """Yield the events of what was held back."""
        yield from self.push("")
        yield from self._events(self._splitter.finish())

    def finish_reason(self, reason: str) -> str:
        """Return `tool_calls` for an answer that ended by itself and has whole calls."""
        return "tool_calls" if reason == "stop" and self._splitter.calls else reason

    def _events(self, pieces: list[Piece]) -> Iterator[ChatEvent]:
        index = self._index
        for piece in pieces:
            match piece:
                case ContentText(text):
                    yield TextDelta(index, text)
                case ReasoningText(text) if self._shows_reasoning:
                    yield ReasoningDelta(index, text)
                case CallBegun(call, name):
                    yield ToolCallBegun(index, call, self._new_id(), name)
                case CallArguments(call, text):
                    yield ToolArgumentsDelta(index, call, text)
                case CallBroken(call, text):
                    yield ToolCallBroken(index, call, text)

    def _new_id(self) -> str:
        unique = uuid.uuid4().hex
        return short_id(unique) if self._short_ids else f"call_{unique[:24]}"
