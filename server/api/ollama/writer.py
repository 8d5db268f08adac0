"""Answers as Ollama's API has them: one object, or a line of JSON for each piece."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from server.api.answer_timing import AnswerTiming
from server.api.chat.answer import ChatAnswer, ToolCall
from server.api.chat.events import AnswerFailed, ReasoningDelta, TextDelta, ToolCallBroken
from server.api.chat.run import ChatRun

NDJSON = "application/x-ndjson"
"""The type of a stream whose lines are JSON."""
_REASONS = {"length": "length", "tool_calls": "stop"}


class PieceForm(Protocol):
    """How a route writes text, thoughts and calls of tools."""

    def __call__(self, text: str, thinking: str, calls: list[ToolCall]) -> dict[str, Any]:
        """Return the fields of a piece."""
        ...


def as_message(text: str, thinking: str, calls: list[ToolCall]) -> dict[str, Any]:
    """Return a piece as `/api/chat` has it."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"name": call.name, "arguments": _object(call.arguments)}}
            for call in calls
        ]
    return {"message": message}


def as_response(text: str, thinking: str, calls: list[ToolCall]) -> dict[str, Any]:
    """Return a piece as `/api/generate` has it, where no tools are called."""
    assert not calls
    return {"response": text, "thinking": thinking} if thinking else {"response": text}


@dataclass(frozen=True, slots=True)
class OllamaWriter:
    """Writes an answer; `model` is the name that the client gave."""

    run: ChatRun
    model: str
    form: PieceForm

    def whole(self, answer: ChatAnswer) -> dict[str, Any]:
        """Return a whole answer."""
        piece = self.form(answer.text, answer.reasoning, answer.tool_calls)
        return {**head(self.model), **piece, **self._end()}

    async def texts(self) -> AsyncIterator[str]:
        """Yield the lines of the stream, to the last. Calls of tools come when they are whole."""
        async for event in self.run.events():
            match event:
                case TextDelta(text=text):
                    yield self._piece(text, "")
                case ReasoningDelta(text=text):
                    yield self._piece("", text)
                case ToolCallBroken(text=text):
                    yield self._piece(text, "")
                case AnswerFailed(message=message):
                    yield _line({"error": message})
                    return
        (answer,) = self.run.progress
        if answer.tool_calls:
            calls = self.form("", "", answer.tool_calls)
            yield _line({**head(self.model), **calls, "done": False})
        yield _line({**head(self.model), **self.form("", "", []), **self._end()})

    def _piece(self, text: str, thinking: str) -> str:
        return _line({**head(self.model), **self.form(text, thinking, []), "done": False})

    def _end(self) -> dict[str, Any]:
        """Return what the last piece tells; durations are in nanoseconds."""
        active, (answer,) = self.run.active, self.run.progress
        timing = AnswerTiming.of([generation.sequence for generation in active.generations])
        return {
            "done": True,
            "done_reason": _REASONS.get(answer.finish_reason or "", "stop"),
            "total_duration": nanoseconds(timing.total),
            "load_duration": 0,
            "prompt_eval_count": active.prompt_tokens,
            "prompt_eval_duration": nanoseconds(timing.reading),
            "eval_count": answer.tokens,
            "eval_duration": nanoseconds(timing.writing),
            "trimtab": active.disclosure(),
        }


def head(model: str) -> dict[str, Any]:
    """Return the fields of every piece."""
    return {"model": model, "created_at": timestamp(datetime.now(UTC))}


def timestamp(moment: datetime) -> str:
    """Return a moment as RFC 3339 has it."""
    return moment.isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float | None) -> int:
    """Return a duration in nanoseconds, 0 for what was not reached."""
    return round(1e9 * (seconds or 0.0))


def _object(arguments: str) -> object:
    """Return the arguments of a call; what is cut off is no JSON, and no arguments at all."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _line(fields: dict[str, Any]) -> str:
    return json.dumps(fields) + "\n"
