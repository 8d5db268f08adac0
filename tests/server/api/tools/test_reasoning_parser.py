"""Reasoning before an answer is split from it, however the text is cut."""

import pytest

from server.api.tools.answer_splitter import AnswerSplitter
from server.api.tools.reasoning_form import ReasoningForm, reasoning_of_template
from server.api.tools.reasoning_parser import ReasoningParser
from server.api.tools.tool_form import TOOL_FORMS
from server.api.tools.tool_parser import ToolParser
from tests.support.answers import calls_of, parse_every_way, text_of

THINK = ReasoningForm("<think>", "</think>")
FRAMED = ReasoningForm("<think>", "</think>", ("<response>", "</response>"))
WORDS = ReasoningForm("Here is my thought process:", "Here is my response:")
CASES = [
    (THINK, False, "<think>\nFirst.\n\nThen.\n</think>\n\nSo.\n", "First.\n\nThen.", "So.\n"),
    (THINK, False, "\n<think></think> So", "", "So"),
    (THINK, False, "<think>\n\n</think>\n\nSo", "", "So"),
    (THINK, False, "So <think>it</think>", "", "So <think>it</think>"),
    (THINK, False, " <thin", "", " <thin"),
    (THINK, False, "<think>cut < of", "cut < of", ""),
    (THINK, True, "First.\n</think>So", "First.", "So"),
    (THINK, True, "\nFirst. </thi", "First. </thi", ""),
    (THINK, False, "  plain\n", "", "  plain\n"),
    (FRAMED, False, "<think>a</think><response>b</response>", "a", "b"),
    (FRAMED, False, "<think>a</think>\nb", "a", "b"),
    (FRAMED, False, "<think>a</think> <resp", "a", " <resp"),
    (WORDS, False, "Here is my thought process:\nwell\nHere is my response:\nyes", "well", "yes"),
]


@pytest.mark.parametrize(("form", "inside", "text", "reasoning", "content"), CASES)
def test_reasoning_is_split_from_the_answer(form, inside, text, reasoning, content):
    pieces = parse_every_way(lambda: ReasoningParser(form, inside), text)
    assert text_of(pieces, "reasoning") == reasoning
    assert text_of(pieces) == content


def test_calls_behind_reasoning_are_found_and_those_in_it_are_not():
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'

    def make():
        return AnswerSplitter(
            ReasoningParser(THINK, False), ToolParser(TOOL_FORMS["hermes"], ["now"])
        )

    pieces = parse_every_way(make, f"<think>{call}?</think>{call}")
    assert text_of(pieces, "reasoning") == f"{call}?"
    assert calls_of(pieces) == [("now", {})]
    assert text_of(pieces) == ""


@pytest.mark.parametrize(
    ("template", "begin"),
    [
        ("{{ '<think>\\n' }}", "<think>"),
        ("<think></think><response></response>", "<think>"),
        ("[THINK]", "[THINK]"),
        ("{{ messages }}", None),
        (None, None),
    ],
)
def test_the_chat_template_says_whether_a_model_reasons(template, begin):
    form = reasoning_of_template(template)
    assert (form and form.begin) == begin
