"""OpenAI's own library: calls of tools, whole, streamed, parsed and in the history."""

import json
from typing import Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 999}, "b": {"enum": [1, 2, 3]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "add": ADD}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CHOICES = [NAMED, "required"]


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def check(calls, choice):
    assert calls
    for call in calls:
        assert choice == "required" or call.function.name == "get_weather"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    assert len({call.id for call in calls}) == len(calls)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_a_call_that_must_be_is_one_of_the_tools(client, model, choice, seed):
    found = client.chat.completions.create(
        model=model, messages=ASK, tools=TOOLS, tool_choice=choice, seed=seed, max_tokens=400
    ).choices[0]
    assert found.finish_reason == "tool_calls"
    assert found.message.content is None
    check(found.message.tool_calls, choice)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_streamed_call_is_that_of_the_plain_answer(client, model, choice):
    body = {
        "model": model, "messages": ASK, "tools": TOOLS, "tool_choice": choice, "max_tokens": 400,
        "temperature": 0,
    }  # fmt: skip
    plain = client.chat.completions.create(**body).choices[0].message.tool_calls
    with client.chat.completions.stream(**body) as stream:
        deltas = [e for e in stream if e.type == "tool_calls.function.arguments.delta"]
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert [c.function.arguments for c in streamed.message.tool_calls] == [
        c.function.arguments for c in plain
    ]
    assert len(deltas) > 1
    check(streamed.message.tool_calls, choice)


def test_only_one_call_where_one_may_be(client, model):
    found = client.chat.completions.create(
        model=model, messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=400,
        parallel_tool_calls=False,
    )  # fmt: skip
    (call,) = found.choices[0].message.tool_calls
    check([call], "required")


def test_the_librarys_parser_makes_objects_of_arguments(client, model):
    class Wish(BaseModel):
        """A wish for dinner."""

        dish: Literal["soup", "fish"]
        guests: int = Field(le=99)

    found = client.chat.completions.parse(
        model=model, messages=ASK, tools=[openai.pydantic_function_tool(Wish)], max_tokens=200,
        tool_choice={"type": "function", "function": {"name": "Wish"}},
    )  # fmt: skip
    (call,) = found.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Wish)


def test_an_answer_follows_a_result(client, model):
    asked = client.chat.completions.create(
        model=model, messages=ASK, tools=TOOLS, tool_choice=NAMED, max_tokens=400
    ).choices[0].message  # fmt: skip
    (call,) = asked.tool_calls
    told = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 17}'}
    found = client.chat.completions.create(
        model=model, messages=[*ASK, asked, told], tools=TOOLS, tool_choice="none", max_tokens=20
    )
    assert found.choices[0].message.content
    assert found.choices[0].message.tool_calls is None


def test_auto_leaves_it_to_the_model(client, model):
    found = client.chat.completions.create(
        model=model, messages=ASK, tools=TOOLS, max_tokens=40
    ).choices[0]
    assert found.message.content or found.message.tool_calls
    for call in found.message.tool_calls or []:
        assert call.function.name in SCHEMAS


def test_a_tool_that_is_not_there_is_refused(client, model):
    choice = {"type": "function", "function": {"name": "missing"}}
    with pytest.raises(openai.BadRequestError, match="missing"):
        client.chat.completions.create(model=model, messages=ASK, tools=TOOLS, tool_choice=choice)
