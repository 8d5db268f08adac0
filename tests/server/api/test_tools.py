"""Chats with tools against a live process on a tiny random model."""

import json

import httpx
import jsonschema
import pytest

from server.testing import ServerProcess
from tests.support.tiny import save_tiny

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


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A server of a tiny model whose context has room for tools, which take many tokens there."""
    root = tmp_path_factory.mktemp("tools")
    folder = save_tiny(root / "tiny", max_position_embeddings=2048)
    server = ServerProcess("--model", str(folder), log=root / "log", TRIMTAB_THREADS="1").wait()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
    assert server.stop() == 0


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


ARGUMENTS = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yes"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SCHEMAS = {"f": ARGUMENTS, "g": {"type": "object", "properties": {}, "additionalProperties": False}}
SHORT_TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
NAMED = {"type": "function", "function": {"name": "f"}}
FORCED = {"tools": SHORT_TOOLS, "temperature": 1.0, "max_tokens": 200, "ignore_eos": False}


def check_calls(message, finish_reason, names):
    assert finish_reason == "tool_calls", message
    assert message["content"] is None
    assert message["tool_calls"]
    for call in message["tool_calls"]:
        function = call["function"]
        assert function["name"] in names
        jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])


def streamed(client, **fields):
    """Return the messages that the chunks of a stream add up to, and why they ended."""
    messages, reasons = {}, {}
    body = {"messages": HI, "stream": True, **fields}
    with client.stream("POST", CHAT, json=body) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    for choice in (choice for line in lines for choice in json.loads(line)["choices"]):
        message = messages.setdefault(choice["index"], {"content": None, "tool_calls": []})
        delta = choice["delta"]
        message["content"] = (message["content"] or "") + (delta.get("content") or "") or None
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["tool_calls"])
                message["tool_calls"].append({"function": dict(call["function"])})
            else:
                entry = message["tool_calls"][call["index"]]["function"]
                entry["arguments"] += call["function"]["arguments"]
        reasons[choice["index"]] = choice["finish_reason"] or reasons.get(choice["index"])
    return [(messages[index], reasons[index]) for index in messages]


@pytest.mark.parametrize(
    ("choice", "parallel", "names"),
    [(NAMED, None, {"f"}), ("required", False, {"f", "g"})],
    ids=["named", "required"],
)
def test_calls_that_must_be_hold_for_a_model_that_knows_nothing(client, choice, parallel, names):
    fields = {**FORCED, "tool_choice": choice, "parallel_tool_calls": parallel, "n": 8}
    for answer in chat(client, seed=1, **fields)["choices"]:
        check_calls(answer["message"], answer["finish_reason"], names)
        assert len(answer["message"]["tool_calls"]) == 1
    for message, reason in streamed(client, seed=9, **fields):
        check_calls(message, reason, names)


def test_several_calls_may_be_required_at_once(client):
    answers = chat(client, seed=3, n=12, tool_choice="required", **FORCED)["choices"]
    whole = [answer for answer in answers if answer["finish_reason"] != "length"]
    for answer in whole:
        check_calls(answer["message"], answer["finish_reason"], {"f", "g"})
    assert max(len(answer["message"]["tool_calls"]) for answer in whole) > 1


def test_a_form_of_the_answer_and_a_call_that_must_be_exclude_each_other(client):
    body = {"messages": HI, "tools": TOOLS, "tool_choice": "required"}
    response = client.post(CHAT, json={**body, "response_format": {"type": "json_object"}})
    assert response.status_code == 400
    assert "exclude each other" in response.json()["error"]["message"]


def test_a_schema_that_is_not_supported_is_named(client):
    function = {"name": "f", "parameters": {"properties": {"a": {"$ref": "http://x/y"}}}}
    tools = [{"type": "function", "function": function}]
    body = {"messages": HI, "tools": tools, "tool_choice": "required"}
    response = client.post(CHAT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
