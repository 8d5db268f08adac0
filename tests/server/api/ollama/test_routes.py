"""Ollama's wire format: lines of JSON, whole answers, lists of models, and errors, over HTTP."""

import json
from datetime import datetime

import httpx
import numpy as np
import pytest

from server.api.chat.events import AnswerEnded, AnswerFailed, TextDelta
from server.api.ollama.writer import OllamaWriter, as_message, as_response
from tests.support.scripted_run import TOOL_ANSWER, ScriptedRun, collected

OPTIONS = {"temperature": 0, "num_predict": 12}
CHAT = {
    "model": "tiny-llama:latest",
    "messages": [{"role": "user", "content": "hello"}],
    "options": OPTIONS,
}


@pytest.fixture
def client(tiny_server):
    with httpx.Client(base_url=tiny_server.url, timeout=30) as client:
        yield client


def lines(client, path, body) -> list[dict]:
    with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in response.iter_lines()]


def test_a_stream_of_chat_is_the_whole_answer(client):
    whole = client.post("/api/chat", json={**CHAT, "stream": False}).json()
    pieces = lines(client, "/api/chat", CHAT)
    assert "".join(piece["message"]["content"] for piece in pieces) == whole["message"]["content"]
    assert [piece["done"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    for last in (whole, pieces[-1]):
        assert last["done_reason"] == "length"
        assert last["eval_count"] == 12
        assert 0 < last["eval_duration"] < last["total_duration"] < 60e9
        assert 0 < last["prompt_eval_duration"] <= last["total_duration"]
        assert last["prompt_eval_count"] > 0
        datetime.fromisoformat(last["created_at"])


def test_the_answer_is_that_of_chat_completions(client):
    body = {"messages": CHAT["messages"], "temperature": 0, "max_tokens": 12}
    expected = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    found = client.post("/api/chat", json={**CHAT, "stream": False}).json()
    assert found["message"]["content"] == expected["content"]
    assert found["model"] == CHAT["model"]


def test_generate_uses_the_template_unless_the_prompt_is_raw(client):
    body = {"model": "tiny-llama", "prompt": "hello", "options": OPTIONS}
    chat = client.post("/api/chat", json={**CHAT, "stream": False}).json()
    found = client.post("/api/generate", json={**body, "stream": False}).json()
    assert found["response"] == chat["message"]["content"]
    raw = lines(client, "/api/generate", {**body, "raw": True})
    completion = {"prompt": "hello", "temperature": 0, "max_tokens": 12}
    expected = client.post("/v1/completions", json=completion).json()["choices"][0]["text"]
    assert "".join(piece["response"] for piece in raw) == expected


def test_an_empty_request_loads_the_model(client):
    for path, body in (("/api/chat", {"messages": []}), ("/api/generate", {})):
        found = client.post(path, json={"model": "tiny-llama", **body}).json()
        assert (found["done"], found["done_reason"]) == (True, "load")
    found = client.post("/api/generate", json={"model": "tiny-llama", "keep_alive": 0}).json()
    assert found["done_reason"] == "unload"


def test_embeddings_are_those_of_the_openai_route(client):
    texts = ["hello fox", "the"]
    expected = client.post("/v1/embeddings", json={"input": texts}).json()["data"]
    found = client.post("/api/embed", json={"model": "tiny-llama", "input": texts}).json()
    np.testing.assert_allclose(found["embeddings"], [one["embedding"] for one in expected])
    older = client.post("/api/embeddings", json={"model": "tiny-llama", "prompt": "the"}).json()
    np.testing.assert_allclose(older["embedding"], expected[1]["embedding"], atol=1e-6)


def test_models_are_listed_and_shown(client):
    names = [model["name"] for model in client.get("/api/tags").json()["models"]]
    assert names == ["tiny-llama", "tiny-llama@base"]
    assert client.get("/api/ps").json()["models"][0]["name"] == "tiny-llama"
    assert client.get("/api/version").json()["version"]
    shown = client.post("/api/show", json={"model": "tiny-llama@base"}).json()
    assert "completion" in shown["capabilities"]
    assert shown["model_info"]["trimtab.context_length"] == 512
    assert "assistant" in shown["template"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/api/chat", {**CHAT, "model": "other"}, 404, "no model 'other'"),
        ("/api/chat", {"messages": []}, 400, "model"),
        ("/api/chat", {**CHAT, "options": {"mirostat": 2}}, 400, "mirostat"),
        ("/api/generate", {"model": "tiny-llama", "prompt": "a", "images": ["x"]}, 400, "images"),
        ("/api/show", {"model": "other"}, 404, "no model 'other'"),
        ("/api/show", {}, 400, "model"),
        ("/api/embed", {"model": "tiny-llama", "input": []}, 400, "input is empty"),
        ("/api/nothing", {}, 404, "no /api/nothing here"),
    ],
)
def test_errors_are_ollamas(client, path, body, status, said):
    response = client.post(path, json=body)
    assert response.status_code == status
    assert said in response.json()["error"]


def written(events, form) -> list[dict]:
    return [
        json.loads(line) for line in collected(OllamaWriter(ScriptedRun(events), "m", form).texts())
    ]


def test_thoughts_and_calls_are_parts_of_messages():
    pieces = [piece["message"] for piece in written(TOOL_ANSWER, as_message)]
    assert "".join(piece.get("thinking", "") for piece in pieces) == "They ask for weather."
    calls = [call["function"] for piece in pieces for call in piece.get("tool_calls", ())]
    assert calls == [
        {"name": "weather", "arguments": {"city": "Paris"}},
        {"name": "clock", "arguments": {}},
    ]
    run = ScriptedRun(TOOL_ANSWER)
    whole = OllamaWriter(run, "m", as_message).whole(run.finish())
    assert whole["message"]["content"] == "I look it up."
    assert [call["function"] for call in whole["message"]["tool_calls"]] == calls
    assert whole["done_reason"] == "stop"
    assert whole["prompt_eval_duration"] == 500_000_000
    assert whole["eval_duration"] == 2_000_000_000


def test_a_failure_is_the_last_line():
    events = (TextDelta(0, "a"), AnswerFailed(0, 500, "it broke"))
    assert written(events, as_response)[-1] == {"error": "it broke"}
    assert written((AnswerEnded(0, "stop"),), as_response)[-1]["response"] == ""
