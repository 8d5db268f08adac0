"""Each family's template gets tools, calls and results as it knows them, or as text."""

import json
from functools import cache

import pytest
from pydantic import TypeAdapter

from server.api.prompt.chat_template import Chat, ChatTemplate
from server.api.tools.bodies import ToolChoice, Tools
from server.api.tools.dialect import open_dialect
from server.api.tools.history import short_id
from server.api.tools.tool_form import TOOL_FORMS
from server.api.tools.tool_use import tool_use
from tests.support import chat_templates
from tests.support.answers import calls_of, parse
from tests.support.tiny import tiny_tokenizer

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "The weather now.", "parameters": SCHEMA}
NOW = {
    "name": "now",
    "description": "The time.",
    "parameters": {"type": "object", "properties": {}},
}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, NOW)]
CALL_ID, LONG_ID = "abcdefgh1", "call_0123456789"
FAMILIES = {
    "PLAIN": ("json", None, False),
    "HERMES": ("hermes", "tools", True),
    "MISTRAL": ("mistral", "tools", True),
    "LLAMA3": ("llama3", "tools", True),
    "GRANITE": ("granite", "tools", False),
    "PHI": ("phi", "message", False),
    "DEEPSEEK": ("json", None, True),
    "SMOLLM3": ("hermes", "xml_tools", False),
    "NO_SYSTEM": ("json", None, False),
}


@pytest.fixture(scope="module")
def opened():
    """Return the template and the dialect of a family, each opened once."""
    templates = []

    @cache
    def open_one(name, parser="auto"):
        source = getattr(chat_templates, name)
        template = ChatTemplate(source, {})
        templates.append(template)
        return template, open_dialect(template, tiny_tokenizer(), parser)

    yield open_one
    for template in templates:
        template.close()


def call(call_id=CALL_ID, arguments='{"city": "Paris"}'):
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": "weather", "arguments": arguments},
    }


def conversation(*calls):
    return [
        {"role": "user", "content": "Weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": list(calls)},
        *({"role": "tool", "tool_call_id": one["id"], "content": "17"} for one in calls),
    ]


def use(choice=None, parallel=None):
    tools = TypeAdapter(Tools).validate_python(TOOLS)
    return tool_use(tools, TypeAdapter(ToolChoice | None).validate_python(choice), parallel)


def render(opened, name, messages, used=None, **variables):
    template, dialect = opened(name)
    chat = dialect.prepare(Chat(messages, variables), used, used is not None and used.required)
    return chat.with_beginning(template.render(chat, 2**20))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_template_says_what_it_knows(opened, name):
    _, dialect = opened(name)
    found = (dialect.form.name, dialect.abilities.tools, dialect.abilities.calls)
    assert found == FAMILIES[name]
    assert dialect.abilities.text_arguments == (name == "DEEPSEEK")
    assert dialect.abilities.several == (name != "LLAMA3")
    assert dialect.abilities.system == (name not in ("MISTRAL", "NO_SYSTEM"))


@pytest.mark.parametrize("name", FAMILIES)
def test_tools_stand_in_the_prompt(opened, name):
    text = render(opened, name, [{"role": "user", "content": "hi"}], use())
    assert json.dumps(SCHEMA)[1:-1] in text
    assert all(part in text for part in ("weather", "The weather now.", '"now"', "hi"))


@pytest.mark.parametrize("name", FAMILIES)
def test_without_tools_a_chat_is_as_it_was(opened, name):
    template, _ = opened(name)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert render(opened, name, messages) == template.render(Chat(messages, {}), 2**20)


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_and_results_stand_in_the_prompt(opened, name):
    text = render(opened, name, conversation(call(LONG_ID)), use())
    _, told = text.split("Weather in Paris?")
    assert "weather" in told
    assert '"city": "Paris"' in told
    assert "17" in told


@pytest.mark.parametrize("name", ["HERMES", "MISTRAL", "LLAMA3"])
def test_what_a_template_knows_is_rendered_as_transformers_does(opened, name):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = getattr(chat_templates, name)
    as_object = conversation(call())
    as_object[1]["tool_calls"][0]["function"]["arguments"] = {"city": "Paris"}
    expected = tokenizer.apply_chat_template(
        as_object, tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    assert render(opened, name, conversation(call()), use()) == expected


@pytest.mark.parametrize("name", ["PLAIN", "PHI", "GRANITE", "SMOLLM3", "NO_SYSTEM"])
def test_calls_that_a_template_cannot_write_are_text_that_the_parser_reads(opened, name):
    _, dialect = opened(name)
    messages = dialect.prepare(Chat(conversation(call(), call(LONG_ID)), {}), None).messages
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    pieces = parse(dialect.splitter(use(), ""), [messages[1]["content"]])
    assert calls_of(pieces) == [("weather", {"city": "Paris"})] * 2
    assert messages[2]["content"].count("<tool_response>\n17\n</tool_response>") == 2


def test_ids_are_short_where_the_template_asks_for_it(opened):
    text = render(opened, "MISTRAL", conversation(call(LONG_ID)), use())
    assert text.count(short_id(LONG_ID)) == 2
    assert short_id(CALL_ID) == CALL_ID


def test_arguments_that_are_no_object_stay_text(opened):
    for arguments in ("[1]", '{"city": ', ""):
        text = render(opened, "HERMES", conversation(call(arguments=arguments)))
        assert json.dumps(arguments) in text or (not arguments and '"arguments": {}' in text)


def test_the_system_message_keeps_its_text(opened):
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    text = render(opened, "PLAIN", messages, use())
    assert text.startswith("<|system|>Be kind.\n\nYou can call tools.")
    assert text.count("<|system|>") == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tool_that_must_be_called_is_begun(opened, name):
    _, dialect = opened(name)
    named = use({"type": "function", "function": {"name": "weather"}})
    text = render(opened, name, [{"role": "user", "content": "hi"}], named)
    beginning = dialect.beginning(named)
    assert text.endswith(beginning)
    splitter = dialect.splitter(named, text)
    assert calls_of(parse(splitter, [beginning, '{"city": ', '"Rome"}'])) == [
        ("weather", {"city": "Rome"})
    ]


def test_reasoning_that_the_template_begins_is_ended_before_a_call(opened):
    text = render(opened, "DEEPSEEK", [{"role": "user", "content": "hi"}], use("required"))
    assert text.split("<|assistant|>")[1].startswith("<think>\n\n</think>\n\n")


def test_the_prompt_says_whether_an_answer_begins_with_reasoning(opened):
    _, dialect = opened("DEEPSEEK")
    text = render(opened, "DEEPSEEK", [{"role": "user", "content": "hi"}])
    pieces = parse(dialect.splitter(None, text), ["So.", "</think>", "Yes."])
    assert pieces == [("reasoning", "So."), ("content", "Yes.")]
    _, hermes = opened("HERMES")
    off = render(opened, "HERMES", [{"role": "user", "content": "hi"}], enable_thinking=False)
    assert parse(hermes.splitter(None, off), ["Yes."]) == [("content", "Yes.")]


def test_efforts_of_reasoning_become_the_variables_of_the_template(opened):
    _, hermes = opened("HERMES")
    assert hermes.reasoning_variables("none") == {"enable_thinking": False}
    assert hermes.reasoning_variables("high") == {"enable_thinking": True}
    assert hermes.reasoning_variables(None) == opened("PLAIN")[1].reasoning_variables("low") == {}


@pytest.mark.parametrize("parser", TOOL_FORMS)
def test_a_setting_names_another_parser(opened, parser):
    assert opened("PLAIN", parser)[1].form.name == parser


def test_special_tokens_that_mark_calls_are_not_left_out():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[INST]"]})
    template = ChatTemplate(chat_templates.MISTRAL, {})
    dialect = open_dialect(template, tokenizer)
    template.close()
    assert dialect.shown(use()) == {tokenizer.convert_tokens_to_ids("[TOOL_CALLS]")}
    assert dialect.shown(None) == frozenset()
