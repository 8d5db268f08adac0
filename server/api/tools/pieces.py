"""The pieces of an answer: text, reasoning and tool calls, in the order in which they come."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContentText:
    """Text of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """Text that the model wrote before its answer, to reason."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of the tool `name` begins, the answer's call number `index`."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A part of the arguments of call number `index`, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallBroken:
    """Call number `index`, which is the last one, ends without being whole; `text` is all of it.

    Whoever has not passed it on yet takes it for content.
    """

    index: int
    text: str


Piece = ContentText | ReasoningText | CallBegun | CallArguments | CallBroken
