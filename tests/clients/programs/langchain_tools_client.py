"""LangChain: bound tools, a loop of calls and results, and structured output by a call."""

from typing import Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field


@tool
def get_weather(city: Literal["Oslo", "Rome"], days: Literal[1, 2, 3]) -> str:
    """Return the weather in a city for some days."""
    return f"{city}: {days} days of sun"


@tool
def now() -> str:
    """Return the time."""
    return "noon"


class Wish(BaseModel):
    """A wish for dinner."""

    dish: Literal["soup", "fish"]
    note: str = Field(max_length=30)


TOOLS = {one.name: one for one in (get_weather, now)}
ASK = "What is the weather in Oslo?"


@pytest.fixture(scope="module")
def chat(url, model):
    return ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model=model, max_retries=0, timeout=120,
        max_tokens=300, temperature=0.7, seed=3,
    )  # fmt: skip


def test_a_bound_tool_is_called(chat):
    answer = chat.bind_tools(list(TOOLS.values()), tool_choice="get_weather").invoke(ASK)
    (call,) = answer.tool_calls
    assert not answer.invalid_tool_calls
    assert "days of sun" in get_weather.invoke(call["args"])


def test_one_of_the_tools_is_called_in_a_stream(chat):
    bound = chat.bind_tools(list(TOOLS.values()), tool_choice="any")
    whole = None
    for chunk in bound.stream(ASK):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls
    assert not whole.invalid_tool_calls
    for call in whole.tool_calls:
        assert TOOLS[call["name"]].invoke(call["args"])


def test_results_go_back_to_the_model(chat):
    messages = [HumanMessage(ASK)]
    asked = chat.bind_tools([get_weather], tool_choice="get_weather").invoke(messages)
    messages.append(asked)
    for call in asked.tool_calls:
        result = get_weather.invoke(call)
        assert isinstance(result, ToolMessage)
        messages.append(result)
    answer = chat.invoke(messages)
    assert isinstance(answer, AIMessage)
    assert answer.content


@pytest.mark.parametrize("strict", [None, True])
def test_structured_output_by_a_call_is_an_object(chat, strict):
    asker = chat.with_structured_output(Wish, method="function_calling", strict=strict)
    assert isinstance(asker.invoke("I would like soup."), Wish)


def test_tools_may_be_bound_without_a_choice(chat):
    answer = chat.bind_tools(list(TOOLS.values())).invoke("Say hello.")
    assert answer.content or answer.tool_calls
