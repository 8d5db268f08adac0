"""A chat whose events are written down beforehand: what writers of wire formats make of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

from server.api.chat.answer import ChatAnswer
from server.api.chat.events import (
    AnswerEnded,
    ChatEvent,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallBegun,
)

TOOL_ANSWER = (
    ReasoningDelta(0, "They ask "),
    ReasoningDelta(0, "for weather."),
    TextDelta(0, "I look "),
    TextDelta(0, "it up."),
    ToolCallBegun(0, 0, "call_a", "weather"),
    ToolArgumentsDelta(0, 0, '{"city": '),
    ToolArgumentsDelta(0, 0, '"Paris"}'),
    ToolCallBegun(0, 1, "call_b", "clock"),
    ToolArgumentsDelta(0, 1, "{}"),
    AnswerEnded(0, "tool_calls"),
)
"""Thoughts, text and two calls."""


class ScriptedRun:
    """Stands for a `ChatRun` of one answer with these events; its prompt has 7 tokens, 3 cached."""

    def __init__(self, events: Sequence[ChatEvent]) -> None:
        self._events = events
        self.progress = [ChatAnswer(token_ids=[1] * 11)]
        request = SimpleNamespace(prompt=(5,) * 7)
        sequence = SimpleNamespace(
            request=request, reused=3, arrived=10.0, started_at=10.5, first_token_at=11.0,
            last_token_at=13.0, output=[1] * 11,
        )  # fmt: skip
        self.active: Any = SimpleNamespace(
            request_id="id-1", created=1234, prompt_tokens=7, choices=1,
            generations=[SimpleNamespace(sequence=sequence)],
            decision=SimpleNamespace(chosen=SimpleNamespace(loss=0.25)),
            disclosure=lambda: {"variant": "base"},
        )  # fmt: skip
        tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: text.split())
        self.service: Any = SimpleNamespace(
            served_name="m", model=SimpleNamespace(name="m", tokenizer=tokenizer)
        )

    async def events(self) -> AsyncIterator[ChatEvent]:
        """Yield the events."""
        for event in self._events:
            self.progress[0].apply(event)
            yield event

    def finish(self) -> ChatAnswer:
        """Return the whole answer."""
        for event in self._events:
            self.progress[0].apply(event)
        return self.progress[0]


def collected(texts: AsyncIterator[str]) -> list[str]:
    """Return all texts of a writer."""

    async def collect() -> list[str]:
        return [text async for text in texts]

    return asyncio.run(collect())
