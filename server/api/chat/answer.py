"""One answer to a chat, as far as its events have come."""

from dataclasses import dataclass, field

from server.api.chat.events import (
    AnswerEnded,
    ChatEvent,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallBegun,
    ToolCallBroken,
)
from server.api.responses import GeneratedAnswer


@dataclass(slots=True)
class ToolCall:
    """A call of a tool; `arguments` is a text of JSON."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class ChatAnswer(GeneratedAnswer):
    """An answer's content (`text`), reasoning and tool calls; its tokens may be ahead of them."""

    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def apply(self, event: ChatEvent) -> None:
        """Take one of the answer's events in."""
        match event:
            case TextDelta(text=text):
                self.text += text
            case ReasoningDelta(text=text):
                self.reasoning += text
            case ToolCallBegun(id=call_id, name=name):
                self.tool_calls.append(ToolCall(call_id, name))
            case ToolArgumentsDelta(text=text):  # it belongs to the latest call
                self.tool_calls[-1].arguments += text
            case ToolCallBroken(text=text):
                self.tool_calls.pop()
                self.text += text
            case AnswerEnded(finish_reason=finish, stop_reason=stop):
                self.finish_reason, self.stop_reason = finish, stop
