"""The events of a streamed response: items of its output, one after the other."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from server.api.chat.answer import ToolCall
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
from server.api.openai.chat_logprobs import logprob_entries
from server.api.openai.token_text import TokenText
from server.api.openai_responses.document import (
    IN_PROGRESS,
    INCOMPLETE,
    Item,
    ResponseDocument,
    call_item,
    message_item,
    new_id,
    reasoning_item,
    reasoning_part,
    status_of,
    text_part,
)
from server.api.responses import sse


@dataclass(slots=True)
class _OpenItem:
    """The item that is being written: its kind (`message`, `reasoning`, `function_call`), its text.

    For a function call, `text` is its arguments so far.
    """

    kind: str
    id: str
    text: str = ""
    logprobs: list[dict[str, object]] = field(default_factory=list)
    call: ToolCall | None = None

    def whole(self) -> Item:
        """Return the item as it is now."""
        if self.kind == "message":
            return message_item(self.id, self.text, self.logprobs)
        if self.kind == "reasoning":
            return reasoning_item(self.id, self.text)
        assert self.call is not None
        return call_item(self.id, ToolCall(self.call.id, self.call.name, self.text))

    def begun(self) -> Item:
        """Return the item before it has content."""
        item = {**self.whole(), "status": IN_PROGRESS}
        return item if self.kind == "function_call" else {**item, "content": []}

    def part(self) -> Item:
        """Return its one part of content as it is now."""
        if self.kind == "reasoning":
            return reasoning_part(self.text)
        return text_part(self.text, self.logprobs)


@dataclass(slots=True)
class ResponseEvents:
    """Writes the events of a streamed response; `done` are the whole items of its output.

    `scored` is the number of log-probabilities that were sent.
    """

    run: ChatRun
    document: ResponseDocument
    tokens: TokenText
    done: list[Item] = field(init=False, default_factory=list)
    open: _OpenItem | None = field(init=False, default=None)
    number: int = field(init=False, default=0)
    scored: int = field(init=False, default=0)

    async def texts(self) -> AsyncIterator[str]:
        """Yield the events of the stream, to the last."""
        begun = self.document.begun()
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        async for event in self.run.events():
            for text in self._texts_of(event):
                yield text

    def _texts_of(self, event: ChatEvent) -> Iterator[str]:
        match event:
            case TextDelta(text=text):
                yield from self._write("message", "msg", text)
            case ReasoningDelta(text=text):
                yield from self._write("reasoning", "rs", text)
            case ToolCallBegun(id=call_id, name=name):
                call = ToolCall(call_id, name)
                yield from self._begin(_OpenItem("function_call", new_id("fc"), call=call))
            case ToolArgumentsDelta(text=text):
                yield self._arguments(text)
            case ToolCallBroken():  # it was passed on, and stays incomplete
                yield from self._close("length")
            case AnswerEnded(finish_reason=reason):
                yield from self._end(reason)
            case AnswerFailed(message=message):
                failed = self.document.failed(self.done, message)
                yield self._event("response.failed", response=failed)

    def _write(self, kind: str, prefix: str, text: str) -> Iterator[str]:
        """Yield the events that add text to an item of a kind, which is opened if need be."""
        if self.open is None or self.open.kind != kind:
            yield from self._begin(_OpenItem(kind, new_id(prefix)))
        item = self.open
        assert item is not None
        item.text += text
        if kind == "reasoning":
            yield self._item_event("response.reasoning_text.delta", content_index=0, delta=text)
            return
        logprobs = self._new_logprobs()
        item.logprobs += logprobs
        yield self._item_event(
            "response.output_text.delta", content_index=0, delta=text, logprobs=logprobs
        )

    def _arguments(self, text: str) -> str:
        assert self.open is not None
        self.open.text += text
        return self._item_event("response.function_call_arguments.delta", delta=text)

    def _begin(self, item: _OpenItem) -> Iterator[str]:
        yield from self._close()
        self.open = item
        index = len(self.done)
        yield self._event("response.output_item.added", output_index=index, item=item.begun())
        if item.call is None:
            yield self._item_event("response.content_part.added", content_index=0, part=item.part())

    def _close(self, finish_reason: str | None = None) -> Iterator[str]:
        """Yield the events that end the open item, if there is one."""
        item = self.open
        if item is None:
            return
        if item.call is not None:
            yield self._item_event(
                "response.function_call_arguments.done", name=item.call.name, arguments=item.text
            )
        elif item.kind == "reasoning":
            yield self._item_event("response.reasoning_text.done", content_index=0, text=item.text)
        else:
            yield self._item_event(
                "response.output_text.done",
                content_index=0,
                text=item.text,
                logprobs=item.logprobs,
            )
        if item.call is None:
            yield self._item_event("response.content_part.done", content_index=0, part=item.part())
        whole = {**item.whole(), "status": status_of(finish_reason)}
        self.open = None
        yield self._event("response.output_item.done", output_index=len(self.done), item=whole)
        self.done.append(whole)

    def _end(self, finish_reason: str) -> Iterator[str]:
        if self.open is None and not self.done:  # an answer without text is a message, too
            yield from self._begin(_OpenItem("message", new_id("msg")))
        yield from self._close(finish_reason)
        response = self.document.ended(self.done, finish_reason)
        kind = "incomplete" if response["status"] == INCOMPLETE else "completed"
        yield self._event(f"response.{kind}", response=response)

    def _new_logprobs(self) -> list[dict[str, object]]:
        """Return the log-probabilities that were not sent yet."""
        scored = self.run.progress[0].logprobs
        new = logprob_entries(self.tokens, scored[self.scored :])
        self.scored = len(scored)
        return new

    def _item_event(self, kind: str, **fields: Any) -> str:  # noqa: ANN401
        """Return an event of the open item."""
        assert self.open is not None
        return self._event(kind, item_id=self.open.id, output_index=len(self.done), **fields)

    def _event(self, kind: str, **fields: Any) -> str:  # noqa: ANN401
        number = self.number
        self.number += 1
        return sse({"type": kind, "sequence_number": number, **fields}, kind)
