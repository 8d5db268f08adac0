"""Tool calls of every family are found however the text is cut; what is no call stays content."""

import pytest

from server.api.tools.tool_form import TOOL_FORMS, WrittenCall
from server.api.tools.tool_parser import ToolParser
from tests.support.answers import calls_of, parse, parse_every_way, text_of

NAMES = ("weather", "add", "now")
PARIS = ("weather", {"city": "Paris"})
SUM = ("add", {"a": 1, "b": [2, {"c": "}"}]})
W = '{"name": "weather", "arguments": {"city": "Paris"}}'
A = '{"name":"add","arguments":{"a":1,"b":[2,{"c":"}"}]}}'


def split(form: str, text: str, max_calls: int | None = None) -> list[tuple[object, ...]]:
    return parse_every_way(lambda: ToolParser(TOOL_FORMS[form], NAMES, max_calls), text)


CALLS = [
    ("hermes", f"<tool_call>\n{W}\n</tool_call>", [PARIS], ""),
    ("hermes", f"I look.\n\n<tool_call>{W}</tool_call>\n<tool_call>{A}</tool_call>\n", [PARIS, SUM],
     "I look."),
    ("hermes", f"<tool_call>{W}", [PARIS], ""),
    ("hermes", f"<tool_call>\n{W[:-1]}\n</tool_call> done", [PARIS], "done"),
    ("hermes", f"<tool_call>[{W}, {A}]</tool_call>", [PARIS, SUM], ""),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', [("now", {})], ""),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>',
     [("add", {"a": 1})], ""),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
     [("add", {"a": 1})], ""),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": "x\ny"}}</tool_call>',
     [("add", {"a": "x\ny"})], ""),
    ("hermes", f"{W} a < b", [], f"{W} a < b"),
    ("smollm", f"<tool_call>[{W}]</tool_call>", [PARIS], ""),
    ("llama3", '{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS], ""),
    ("llama3", '<|python_tag|>{"type": "function", "name": "weather", "parameters": '
     '{"city": "Paris"}}; {"name": "now", "parameters": {}}', [PARIS, ("now", {})], ""),
    ("llama3", '{"type": "function", "function": {"name": "now", "parameters": {}}}',
     [("now", {})], ""),
    ("mistral", f"[TOOL_CALLS] [{W}, {A}]", [PARIS, SUM], ""),
    ("mistral", '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "abcdefghi"}]',
     [("now", {})], ""),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now{}',
     [PARIS, ("now", {})], ""),
    ("mistral", '[TOOL_CALLS]now[CALL_ID]a1[ARGS]{}', [("now", {})], ""),
    ("granite", f"<|tool_call|>[{W}, {A}]", [PARIS, SUM], ""),
    ("granite", f"<tool_call>{W}</tool_call>", [PARIS], ""),
    ("phi", f"<|tool_call|>[{W}]<|/tool_call|>", [PARIS], ""),
    ("json", f"\n {W}", [PARIS], ""),
    ("json", f"Sure:\n```json\n{W}\n```\nDone", [PARIS], "Sure:Done"),
    ("json", f"```\n[{W}]\n```", [PARIS], ""),
    ("json", f'{{"tool_calls": [{W}, {A}]}}', [PARIS, SUM], ""),
    ("json", f'Here:\n{{"tool_call": {W}}}', [PARIS], "Here:"),
]  # fmt: skip
NO_CALLS = [
    ("hermes", ""),
    ("hermes", "plain text\n"),
    ("hermes", "a <tool_cal"),
    ("hermes", "\n\n<tool_call>"),
    ("hermes", "<tool_call>\nnot json</tool_call>"),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call> '),
    ("hermes", '<tool_call>{"arguments": {"a": 1e999}, "name": "add"}'),
    ("hermes", '<tool_call>{"name": {}, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>[]</tool_call>'),
    ("mistral", "[TOOL_CALLS] I cannot {do} that"),
    ("mistral", "[TOOL_CALLS]unknown[ARGS]{}"),
    ("json", '{"city": "Paris", "name": "weather"}'),
    ("json", 'A list:\n[1, 2]\n{"a": {"name": "now"}}\n'),
    ("json", '```json\n{"a": 1}\n```\n'),
    ("json", '{"name": "Bob", "arguments": {}}'),
    ("json", '{"name": "now", "age": 3}'),
    ("llama3", '{"name": "now'),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "calls", "content"), CALLS)
def test_calls_are_found(form, text, calls, content):
    pieces = split(form, text)
    assert calls_of(pieces) == calls
    assert text_of(pieces) == content


@pytest.mark.parametrize(("form", "text"), NO_CALLS)
def test_what_is_no_call_is_given_back_as_it_is(form, text):
    assert split(form, text) == ([("content", text)] if text else [])


@pytest.mark.parametrize("form", TOOL_FORMS)
def test_a_family_reads_what_it_writes(form):
    written = [WrittenCall("weather", '{"city": "Paris"}'), WrittenCall("now", "{}")]
    pieces = split(form, TOOL_FORMS[form].write(written))
    assert calls_of(pieces) == [PARIS, ("now", {})]
    assert text_of(pieces) == ""


@pytest.mark.parametrize("form", TOOL_FORMS)
def test_a_call_may_be_begun_for_the_model(form):
    pieces = split(form, TOOL_FORMS[form].before_arguments("weather") + '{"city": "Paris"}')
    assert calls_of(pieces) == [PARIS]
    assert text_of(pieces) == ""


BROKEN = [
    ('<tool_call>{"name": "add", "arguments": {"a": oops}}</tool_call>', "oops}}</tool_call>"),
    ('x <tool_call>{"name": "add", "arguments": {"a": "b', ""),
    (f'<tool_call>[{W}, {{"name": "add", "arguments": {{"a" 1}}}}]</tool_call>',
     "1}}]</tool_call>"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "rest"), BROKEN)
def test_a_call_that_breaks_off_is_named_with_all_of_its_text(text, rest):
    pieces = split("hermes", text)
    broken = next(piece for piece in pieces if piece[0] == "broken")
    assert text.endswith(f"{broken[2]}{rest}")
    assert text_of(pieces).endswith(rest)
    assert all(call[0] == "weather" for call in calls_of(pieces))


def test_arguments_come_as_they_are_written():
    parser = ToolParser(TOOL_FORMS["hermes"], NAMES)
    text = f"<tool_call>{W}"
    seen = [len(parser.push(character)) for character in text]
    begun = text.index('{"city')
    assert seen == [0] * begun + [2] + [1] * len('"city": "Paris"}') + [0]


def test_no_more_calls_than_allowed_are_passed_on():
    pieces = split("hermes", f"<tool_call>{W}</tool_call><tool_call>{A}</tool_call>ok", 1)
    assert calls_of(pieces) == [PARIS]
    assert text_of(pieces) == "ok"


def test_text_without_calls_waits_for_nothing_but_blanks():
    parser = ToolParser(TOOL_FORMS["json"], NAMES)
    for character in "a {b} c<d [e]":
        assert bool(parser.push(character)) == (not character.isspace() and character != "<")


def test_random_texts_are_the_same_however_they_are_cut():
    import random

    rng = random.Random(0)
    parts = ["<tool_call>", "</tool_call>", W, A, "\n", " ", "{", "}", "[", "]", ",", ";", "x",
             "```json\n", "```", '"', "<tool", "[TOOL_CALLS]", "now", "[ARGS]", "{}"]  # fmt: skip
    for _ in range(3000):
        form = TOOL_FORMS[rng.choice(list(TOOL_FORMS))]
        text = "".join(rng.choices(parts, k=rng.randint(1, 8)))
        whole = parse(ToolParser(form, NAMES), [text])
        assert parse(ToolParser(form, NAMES), list(text)) == whole, (form.name, text)
        places = sorted(rng.sample(range(len(text) + 1), k=min(3, len(text))))
        chunks = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
        assert parse(ToolParser(form, NAMES), chunks) == whole, (form.name, chunks)
