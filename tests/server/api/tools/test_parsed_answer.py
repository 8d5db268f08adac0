"""Text of an answer becomes events, and the events an answer."""

import pytest

from server.api.chat.answer import ChatAnswer
from server.api.chat.events import TextDelta, ToolArgumentsDelta, ToolCallBegun, ToolCallBroken
from server.api.tools.answer_splitter import AnswerSplitter
from server.api.tools.parsed_answer import ParsedAnswer
from server.api.tools.reasoning_form import ReasoningForm
from server.api.tools.reasoning_parser import ReasoningParser
from server.api.tools.tool_form import TOOL_FORMS
from server.api.tools.tool_parser import ToolParser

CALL = '<tool_call>{"name": "now", "arguments": {"zone": "UTC"}}</tool_call>'


def answer(*chunks, beginning="", short_ids=False, reasoning=False, shows_reasoning=True):
    think = ReasoningParser(ReasoningForm("<think>", "</think>"), False) if reasoning else None
    splitter = AnswerSplitter(think, ToolParser(TOOL_FORMS["hermes"], ["now"]))
    parsed = ParsedAnswer(3, splitter, beginning, short_ids, shows_reasoning)
    events = [event for chunk in chunks for event in parsed.push(chunk)]
    events += parsed.end()
    whole = ChatAnswer()
    for event in events:
        whole.apply(event)
    return events, whole, parsed


def test_a_call_begins_then_its_arguments_come_and_each_has_an_id_of_its_own():
    events, whole, parsed = answer("So: ", CALL[:40], CALL[40:], CALL)
    assert {event.index for event in events} == {3}
    assert events[0] == TextDelta(3, "So:")
    begun = [event for event in events if isinstance(event, ToolCallBegun)]
    assert [(event.call, event.name) for event in begun] == [(0, "now"), (1, "now")]
    assert len({event.id for event in begun}) == 2
    assert [(call.name, call.arguments) for call in whole.tool_calls] == [
        ("now", '{"zone": "UTC"}')
    ] * 2
    assert parsed.finish_reason("stop") == "tool_calls"
    assert parsed.finish_reason("length") == "length"


def test_the_beginning_of_an_answer_is_read_first():
    events, whole, _ = answer(
        '"UTC"}', beginning='<tool_call>{"name": "now", "arguments": {"zone":'
    )
    assert isinstance(events[0], ToolCallBegun)
    assert whole.tool_calls[0].arguments == '{"zone":"UTC"}'
    assert whole.text == ""


def test_a_call_that_breaks_off_is_text_of_the_whole_answer():
    text = 'A <tool_call>{"name": "now", "arguments": {"zone" UTC}}</tool_call> ' + CALL
    events, whole, parsed = answer(text)
    assert [type(event) for event in events if event not in (TextDelta,)].count(ToolCallBroken) == 1
    assert whole.text == text.removesuffix(" " + CALL)
    assert [call.arguments for call in whole.tool_calls] == ['{"zone": "UTC"}']
    numbers = [event.call for event in events if isinstance(event, ToolArgumentsDelta)]
    assert numbers == [0, 1], "a number stands for one call alone"
    assert parsed.finish_reason("stop") == "tool_calls"


def test_only_a_broken_call_is_no_reason_to_end():
    _, whole, parsed = answer('<tool_call>{"name": "now", "arguments": {')
    assert parsed.finish_reason("stop") == "stop"
    assert whole.tool_calls == []


@pytest.mark.parametrize("shown", [True, False])
def test_reasoning_may_be_left_out(shown):
    _, whole, _ = answer("<think>a</think>b", reasoning=True, shows_reasoning=shown)
    assert (whole.reasoning, whole.text) == ("a" if shown else "", "b")


def test_ids_may_be_short():
    _, whole, _ = answer(CALL, short_ids=True)
    (call,) = whole.tool_calls
    assert len(call.id) == 9
    assert call.id.isalnum()
