"""What happens in the answers to a chat, in no wire format: each route writes these in its own."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text was added to the content of answer `index`."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text was added to what answer `index` thinks before it speaks."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegun:
    """Answer `index` calls a tool. `id` is new and unique.

    `call` is the number of calls that had begun before, also those that broke off.
    """

    index: int
    call: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    """Text of JSON was added to the arguments of call number `call` of answer `index`."""

    index: int
    call: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBroken:
    """Call number `call` of answer `index`, the latest, breaks off: it is no call.

    `text` is all of it, which is content unless the call has already been passed on.
    """

    index: int
    call: int
    text: str


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    """Answer `index` is whole. `stop_reason` is the stop string or the token that ended it."""

    index: int
    finish_reason: str
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class AnswerFailed:
    """Answer `index` failed, and with it the request: it is the last event.

    `status` is HTTP's; a client may try again after `retry_after` seconds.
    """

    index: int
    status: int
    message: str
    retry_after: float | None = None


ChatEvent = (
    TextDelta
    | ReasoningDelta
    | ToolCallBegun
    | ToolArgumentsDelta
    | ToolCallBroken
    | AnswerEnded
    | AnswerFailed
)
