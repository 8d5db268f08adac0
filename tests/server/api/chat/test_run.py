"""Events of a chat's answers, with a stand-in for the service and a parser that calls a tool."""

import asyncio
from types import SimpleNamespace

import pytest

from server.api.chat.events import (
    AnswerEnded,
    AnswerFailed,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallBegun,
)
from server.api.chat.parser import PlainAnswer
from server.api.chat.run import ChatRun
from server.api.errors import ApiError
from server.engine.sequence import Delta, FinishReason

END = Delta("!", 3, finish_reason=FinishReason.LENGTH)


class _Service:
    """Yields the given deltas; `closed` says that the rest was cancelled."""

    def __init__(self, deltas, alive=True):
        self._deltas, self.closed = deltas, False
        self.engine = SimpleNamespace(alive=alive)

    async def deltas(self, active):
        try:
            for one in self._deltas:
                yield one
        finally:
            self.closed = True

    def close(self, active):
        self.closed = True


class _Caller:
    """Thinks first, calls a tool, and says at its end what it held back."""

    def __init__(self, index):
        self._index = index

    def push(self, text):
        if text == "think":
            return (ReasoningDelta(self._index, "hm"),)
        return (
            ToolCallBegun(self._index, 0, "call-1", "add"),
            ToolArgumentsDelta(self._index, 0, text),
        )

    def end(self):
        return (ToolArgumentsDelta(self._index, 0, "}"),)

    def finish_reason(self, reason):
        return "tool_calls"


class _Client:
    async def receive(self):
        await asyncio.sleep(60)


def _run(deltas, parsers, alive=True):
    active = SimpleNamespace(final=True, headers=lambda: {})
    return ChatRun(_Service(deltas, alive), active, _Client(), None, parsers, [1])


async def _listed(run):
    return [event async for event in run.events()]


def test_text_becomes_events_and_answers_keep_their_places():
    run = _run(
        [(0, Delta()), (1, Delta("b", 1)), (0, Delta("a", 2)), (1, END), (0, END)],
        [PlainAnswer(0), PlainAnswer(1)],
    )
    assert asyncio.run(_listed(run)) == [
        TextDelta(1, "b"), TextDelta(0, "a"), TextDelta(1, "!"), AnswerEnded(1, "length"),
        TextDelta(0, "!"), AnswerEnded(0, "length"),
    ]  # fmt: skip
    assert [answer.text for answer in run.progress] == ["a!", "b!"]
    assert [answer.tokens for answer in run.progress] == [2, 2]


def test_a_parser_makes_reasoning_and_calls_of_the_text():
    last = Delta("", 3, finish_reason=FinishReason.STOP)
    run = _run([(0, Delta("think", 1)), (0, Delta("{", 2)), (0, last)], [_Caller(0)])
    (answer,) = asyncio.run(run.answers())
    assert (answer.reasoning, answer.text, answer.finish_reason) == ("hm", "", "tool_calls")
    (call,) = answer.tool_calls
    assert (call.id, call.name, call.arguments) == ("call-1", "add", "{}")
    assert answer.tokens == 3


@pytest.mark.parametrize(("alive", "status", "retry"), [(True, 500, None), (False, 503, 1)])
def test_a_failure_is_the_last_event_and_an_error_of_whole_answers(alive, status, retry):
    failed = Delta(finish_reason=FinishReason.ERROR, error="the step failed")
    deltas = [(0, Delta("a", 1)), (1, failed), (0, END)]
    run = _run(deltas, [PlainAnswer(0), PlainAnswer(1)], alive)
    events = asyncio.run(_listed(run))
    assert events == [TextDelta(0, "a"), AnswerFailed(1, status, "the step failed", retry)]
    assert run.service.closed
    whole = _run(deltas, [PlainAnswer(0), PlainAnswer(1)], alive)
    with pytest.raises(ApiError, match="the step failed") as raised:
        asyncio.run(whole.answers())
    assert (raised.value.status, raised.value.retry_after) == (status, retry)


def test_leaving_early_closes_the_request():
    run = _run([(0, Delta("a", 1)), (0, END)], [PlainAnswer(0)])

    async def leave():
        events = run.events()
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert run.service.closed
