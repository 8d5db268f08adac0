"""Chats with tools against a live process on a tiny random model."""

import httpx
import pytest

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
HI = [{"role": "user", "content": "hi"}]
CALLED = [
    *HI,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "17"}]},
]
CHAT = "/v1/chat/completions"


@pytest.fixture
def client(tiny_server):
    with httpx.Client(base_url=tiny_server.url, timeout=30) as client:
        yield client


def chat(client, messages=HI, **fields):
    body = {"messages": messages, "temperature": 0, "max_tokens": 4, "ignore_eos": True, **fields}
    response = client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def prompt_tokens(answer):
    return answer["usage"]["prompt_tokens"]


def test_tools_stand_in_the_prompt_unless_none_may_be_called(client):
    without = prompt_tokens(chat(client))
    assert prompt_tokens(chat(client, tools=TOOLS)) > without + 50
    assert prompt_tokens(chat(client, tools=TOOLS, tool_choice="none")) == without
    assert prompt_tokens(chat(client, tools=[], parallel_tool_calls=False)) == without


def test_an_answer_without_calls_is_as_it_was(client):
    (choice,) = chat(client, tools=TOOLS)["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"]
    assert "tool_calls" not in choice["message"]


def test_calls_and_their_results_may_stand_in_the_history(client):
    assert prompt_tokens(chat(client, CALLED, tools=TOOLS)) > prompt_tokens(chat(client, CALLED))
    assert prompt_tokens(chat(client, CALLED)) > prompt_tokens(chat(client)) + 50


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": TOOLS * 2}, "tools"),
        ({"tools": TOOLS * 129}, "tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        ({"messages": [*HI, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages"),
        ({"messages": [*HI, {"role": "tool", "tool_call_id": 3}]}, "messages"),
        ({"functions": [{"name": "x"}]}, "functions"),
    ],
)
def test_what_is_wrong_with_tools_is_one_line(client, fields, param):
    response = client.post(CHAT, json={"messages": HI, **fields})
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].startswith(param)
    assert "\n" not in error["message"]
