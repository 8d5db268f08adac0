"""Answers as Anthropic's API has them: a message of content blocks, whole or as events."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from server.api.chat.answer import ChatAnswer
from server.api.chat.events import (
    AnswerEnded,
    AnswerFailed,
    ChatEvent,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallBegun,
    ToolCallBroken,
)
from server.api.chat.run import ChatRun
from server.api.error_envelope import anthropic_error
from server.api.responses import sse, usage

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
_DELTAS = {"text": "text_delta", "thinking": "thinking_delta"}


def message(run: ChatRun, answer: ChatAnswer, model: str) -> dict[str, object]:
    """Return a whole answer."""
    content: list[dict[str, object]] = []
    if answer.reasoning:
        content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
    if answer.text or not answer.tool_calls:
        content.append({"type": "text", "text": answer.text})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)}
        for call in answer.tool_calls
    ]
    reason, sequence = _stop(answer.finish_reason, answer.stop_reason)
    return {
        **_head(run, model, content),
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": _usage(run),
        "trimtab": run.active.disclosure(),
    }


@dataclass(slots=True)
class MessageEvents:
    """Writes the events of a streamed answer. Blocks are open one after the other.

    `blocks` is the number of blocks so far, `kind` that of the open one: `text`, `thinking`,
    `tool_use` or empty.
    """

    run: ChatRun
    model: str
    blocks: int = field(init=False, default=0)
    kind: str = field(init=False, default="")

    async def texts(self) -> AsyncIterator[str]:
        """Yield the events of the stream, to the last."""
        start = {**_head(self.run, self.model, []), "usage": _usage(self.run)}
        start |= {"stop_reason": None, "stop_sequence": None}
        start["trimtab"] = self.run.active.disclosure()
        yield _event("message_start", message=start)
        async for event in self.run.events():
            if isinstance(event, AnswerFailed):
                yield sse(anthropic_error(event.status, event.message), "error")
                return
            for text in self._texts_of(event):
                yield text

    def _texts_of(self, event: ChatEvent) -> Iterator[str]:
        match event:
            case TextDelta(text=text):
                yield from self._write("text", text)
            case ReasoningDelta(text=text):
                yield from self._write("thinking", text)
            case ToolCallBegun(id=call_id, name=name):
                yield from self._begin(
                    "tool_use", {"type": "tool_use", "id": call_id, "name": name, "input": {}}
                )
            case ToolArgumentsDelta(text=text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case ToolCallBroken():  # it was passed on, and stays as it is
                yield from self._close()
            case AnswerEnded():
                yield from self._end(event)

    def _write(self, kind: str, text: str) -> Iterator[str]:
        """Yield the events that add text to a block of a kind, which is opened if need be."""
        if self.kind != kind:
            yield from self._begin(kind, {"type": kind, kind: ""})
        yield self._delta({"type": _DELTAS[kind], kind: text})

    def _begin(self, kind: str, block: dict[str, object]) -> Iterator[str]:
        yield from self._close()
        self.kind = kind
        self.blocks += 1
        yield _event("content_block_start", index=self.blocks - 1, content_block=block)

    def _close(self) -> Iterator[str]:
        if self.kind:
            self.kind = ""
            yield _event("content_block_stop", index=self.blocks - 1)

    def _delta(self, delta: dict[str, object]) -> str:
        return _event("content_block_delta", index=self.blocks - 1, delta=delta)

    def _end(self, event: AnswerEnded) -> Iterator[str]:
        if not self.blocks:  # an answer without text has a block all the same
            yield from self._begin("text", {"type": "text", "text": ""})
        yield from self._close()
        reason, sequence = _stop(event.finish_reason, event.stop_reason)
        yield _event(
            "message_delta",
            delta={"stop_reason": reason, "stop_sequence": sequence},
            usage=_usage(self.run),
            trimtab=self.run.active.disclosure(),
        )
        yield _event("message_stop")


def _head(run: ChatRun, model: str, content: list[dict[str, object]]) -> dict[str, object]:
    return {
        "id": run.active.request_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
    }


def _usage(run: ChatRun) -> dict[str, object]:
    """Return the tokens so far; those from the prefix cache are not among `input_tokens`."""
    counted: dict[str, Any] = usage(run.active, run.progress)
    cached = counted.pop("prompt_tokens_details")["cached_tokens"]
    del counted["total_tokens"]
    return {
        "input_tokens": counted.pop("prompt_tokens") - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": counted.pop("completion_tokens"),
        **counted,
    }


def _stop(finish_reason: str | None, stop_reason: str | int | None) -> tuple[str, str | None]:
    """Return why an answer ended, and the stop sequence that ended it, if one did."""
    if isinstance(stop_reason, str):
        return "stop_sequence", stop_reason
    return _STOP_REASONS.get(finish_reason or "", "end_turn"), None


def _input(arguments: str) -> object:
    """Return the arguments of a call; what is cut off is no JSON, and no arguments at all."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {}


def _event(kind: str, **fields: object) -> str:
    return sse({"type": kind, **fields}, kind)
