"""Anthropic's wire format: events, whole messages, and errors, over HTTP."""

import json

import httpx
import pytest

from server.api.anthropic.writer import MessageEvents, message
from server.api.chat.events import AnswerEnded, AnswerFailed, TextDelta
from tests.support.scripted_run import TOOL_ANSWER, ScriptedRun, collected

BODY = {
    "model": "tiny-llama",
    "max_tokens": 12,
    "messages": [{"role": "user", "content": "hello"}],
    "temperature": 0,
}


@pytest.fixture
def client(tiny_server):
    with httpx.Client(base_url=tiny_server.url, timeout=30) as client:
        yield client


def events_of(lines) -> list[dict]:
    """The events of a stream, each of which must have the name of its type."""
    found = []
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            found.append(json.loads(line.removeprefix("data: ")))
            assert found[-1]["type"] == name
    return found


def streamed(events) -> list[dict]:
    texts = collected(MessageEvents(ScriptedRun(events), "m").texts())
    return events_of("".join(texts).splitlines())


def rebuilt(events: list[dict]) -> dict:
    """The message that a client makes of the events of a stream."""
    found: dict = {}
    for event in events:
        match event["type"]:
            case "message_start":
                found = {**event["message"]}
            case "content_block_start":
                assert event["index"] == len(found["content"])
                found["content"].append({**event["content_block"], "json": ""})
            case "content_block_delta":
                block, delta = found["content"][event["index"]], event["delta"]
                assert event["index"] == len(found["content"]) - 1
                if delta["type"] == "input_json_delta":
                    block["json"] += delta["partial_json"]
                else:
                    kind = delta["type"].removesuffix("_delta")
                    block[kind] += delta[kind]
            case "content_block_stop":
                block = found["content"][event["index"]]
                if text := block.pop("json"):
                    block["input"] = json.loads(text)
            case "message_delta":
                found |= event["delta"]
                found["usage"] = event["usage"]
    return found


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (TOOL_ANSWER, ("tool_use", None)),
        ((TextDelta(0, "a"), AnswerEnded(0, "length")), ("max_tokens", None)),
        ((TextDelta(0, "a"), AnswerEnded(0, "stop", "END")), ("stop_sequence", "END")),
        ((TextDelta(0, "a"), AnswerEnded(0, "stop", 2)), ("end_turn", None)),
        ((AnswerEnded(0, "stop"),), ("end_turn", None)),
    ],
)
def test_a_stream_is_the_whole_message(events, reason):
    run = ScriptedRun(events)
    whole = message(run, run.finish(), "m")
    stream = rebuilt(streamed(events))
    for block in whole["content"]:
        block.pop("signature", None)
    assert stream == whole
    assert (whole["stop_reason"], whole["stop_sequence"]) == reason
    assert whole["usage"]["input_tokens"] == 4
    assert whole["usage"]["cache_read_input_tokens"] == 3
    assert whole["usage"]["output_tokens"] == 11
    assert whole["usage"]["trimtab_loss"] == 0.25


def test_thoughts_text_and_calls_are_blocks():
    run = ScriptedRun(TOOL_ANSWER)
    content = message(run, run.finish(), "m")["content"]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use", "tool_use"]
    assert content[0]["thinking"] == "They ask for weather."
    assert content[2]["input"] == {"city": "Paris"}
    assert (content[3]["id"], content[3]["name"]) == ("call_b", "clock")


def test_a_failure_ends_the_stream():
    last = streamed((TextDelta(0, "a"), AnswerFailed(0, 503, "it ends")))[-1]
    assert last == {"type": "error", "error": {"type": "overloaded_error", "message": "it ends"}}


def test_an_answer_is_that_of_chat(client):
    chat = client.post("/v1/chat/completions", json=BODY).json()
    response = client.post("/v1/messages", json=BODY)
    body = response.json()
    assert body["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]
    assert body["stop_reason"] == "max_tokens"
    assert body["usage"]["output_tokens"] == 12
    assert response.headers["x-trimtab-variant"] == body["trimtab"]["variant"] == "base"
    with client.stream("POST", "/v1/messages", json={**BODY, "stream": True}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        found = rebuilt(events_of(stream.iter_lines()))
    assert found["content"] == body["content"]
    assert found["stop_reason"] == "max_tokens"


def test_a_begun_answer_is_continued(client):
    begun = [*BODY["messages"], {"role": "assistant", "content": "the quick"}]
    chat = {**BODY, "messages": begun, "continue_final_message": True}
    expected = client.post("/v1/chat/completions", json=chat).json()
    found = client.post("/v1/messages", json={**BODY, "messages": begun}).json()
    assert found["content"][0]["text"] == expected["choices"][0]["message"]["content"]


def test_tokens_are_counted_as_they_are_used(client):
    body = {**BODY, "system": "Be short."}
    counted = client.post("/v1/messages/count_tokens", json=body).json()
    used = client.post("/v1/messages", json=body).json()["usage"]
    assert counted["input_tokens"] == used["input_tokens"] + used["cache_read_input_tokens"]


@pytest.mark.parametrize(
    ("change", "status", "kind", "said"),
    [
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"messages": []}, 400, "invalid_request_error", "messages is empty"),
        ({"model": "other"}, 404, "not_found_error", "no model 'other'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            400,
            "invalid_request_error",
            "image",
        ),
        ({"mcp_servers": [{"url": "x"}]}, 400, "invalid_request_error", "mcp_servers"),
        ({"max_tokens": 100000}, 400, "invalid_request_error", "context"),
    ],
)
def test_errors_are_anthropics(client, change, status, kind, said):
    response = client.post("/v1/messages", json={**BODY, **change})
    body = response.json()
    assert response.status_code == status
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert said in body["error"]["message"]


def test_what_is_no_json_is_an_error_of_anthropics_shape(client):
    response = client.post(
        "/v1/messages", content=b"{", headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["type"] == "error"
