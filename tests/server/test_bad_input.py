"""Bad input gets a 4xx in the OpenAI envelope, and no slot is lost."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]

CASES = [
    (GENERATE, {"prompt": ""}, "empty"),
    (GENERATE, {}, "prompt"),
    (GENERATE, {"prompt": 5}, "prompt"),
    (GENERATE, {"prompt": "x", "max_tokens": -1}, "max_tokens"),
    (GENERATE, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
    (GENERATE, {"prompt": "x", "temperature": -0.5}, "temperature"),
    (GENERATE, {"prompt": "x", "top_p": 0}, "top_p"),
    (GENERATE, {"prompt": "x", "top_p": 1.5}, "top_p"),
    (GENERATE, {"prompt": "x", "n": 2}, "one answer"),
    (GENERATE, {"prompt": "x", "stop": ""}, "stop"),
    (GENERATE, {"prompt": "x", "seed": "a"}, "seed"),
    (GENERATE, {"prompt": "x " * 2000}, "context"),
    (GENERATE, {"prompt": "x", "max_tokens": 100000}, "context"),
    (GENERATE, {"prompt": "x", "trimtab": {"variant": "nope"}}, "no variant 'nope'"),
    (GENERATE, {"prompt": "x", "trimtab": {"varaint": "base"}}, "varaint"),
    (GENERATE, {"prompt": "x", "trimtab": {"ttft_ms": -3}}, "ttft_ms"),
    (GENERATE, {"prompt": "x", "trimtab": {"kv_budget": 2}}, "kv_budget"),
    (GENERATE, {"prompt": "x", "trimtab": 5}, "trimtab"),
    (GENERATE, {"prompt": "x", "logit_bias": {"99999": 1}}, "vocabulary"),
    (COMPLETIONS, {"prompt": [], "model": "tiny-llama"}, "empty"),
    (COMPLETIONS, {"prompt": [[]]}, "empty"),
    (COMPLETIONS, {"prompt": [999999]}, "vocabulary"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt"),
    (COMPLETIONS, {"prompt": "x", "n": 1000}, "answers"),
    (COMPLETIONS, {"prompt": "x", "suffix": "y"}, "suffix"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 500}, "logprobs"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, "echo"),
    (COMPLETIONS, {"prompt": "x", "stream_options": {"include_usage": True}}, "stream"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hi"}, "messages"),
    (CHAT, {"messages": [{"content": "hi"}]}, "role"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, "tools"),
    (CHAT, {"messages": HI, "response_format": {"type": "json_object"}}, "response_format"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, "top_logprobs"),
]


@pytest.fixture
def client(tiny_server):
    with httpx.Client(base_url=tiny_server.url, timeout=30) as client:
        yield client


def refused(response, status=400):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(("path", "body", "says"), CASES)
def test_it_is_refused_and_the_message_says_why(client, path, body, says):
    error = refused(client.post(path, json=body))
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("text", ['{"prompt": ', "[1, 2]", "null", '"x"', "\x00", "", "{'a': 1}"])
def test_broken_json(client, text):
    refused(client.post(GENERATE, content=text, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("field", ["temperature", "top_p", "presence_penalty", "min_p"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(client, field, value):
    text = f'{{"prompt": "x", "{field}": {value}}}'
    refused(client.post(GENERATE, content=text, headers={"content-type": "application/json"}))


def test_unknown_models_paths_and_methods(client):
    body = {"prompt": "x", "model": "gpt-9"}
    assert refused(client.post(COMPLETIONS, json=body), 404)["code"] == "model_not_found"
    refused(client.post(CHAT, json={"messages": HI, "model": "tiny-llama@ffn-1"}), 404)
    refused(client.get("/nothing"), 404)
    refused(client.get(GENERATE), 405)


def test_a_body_that_is_too_large(client):
    big = json.dumps({"prompt": "x" * 10_000_000})
    headers = {"content-type": "application/json"}
    refused(client.post(GENERATE, content=big, headers=headers), 413)

    def pieces():
        for _ in range(200):
            yield b"x" * 50_000

    refused(client.post(GENERATE, content=pieces(), headers=headers), 413)


def test_hanging_up_frees_the_slot(tiny_server, client):
    body = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with client.stream("POST", COMPLETIONS, json=body) as response:
        next(response.iter_lines())
    tiny_server.idle()

    # Without a stream: the connection is closed while the server is still writing.
    plain = json.dumps({"prompt": "x", "max_tokens": 400, "ignore_eos": True, "n": 8}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", tiny_server.port)) as raw:
        raw.sendall(f"{head}Content-Length: {len(plain)}\r\n\r\n".encode() + plain)
        time.sleep(0.2)
    found = tiny_server.idle()
    aborted = 'trimtab_requests_total{outcome="abort",variant="base"}'
    assert found[aborted] >= 2


def test_a_hundred_bad_and_good_requests_at_once_leave_nothing_behind(tiny_server):
    def ask(number):
        with httpx.Client(base_url=tiny_server.url, timeout=60) as client:
            if number % 3 == 0:
                path, body, _ = CASES[number % len(CASES)]
                return client.post(path, json=body).status_code
            body = {"prompt": f"number {number}", "max_tokens": 8, "temperature": 1.0}
            return client.post(GENERATE, json=body).status_code

    with ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(ask, range(100)))
    assert set(codes) == {200, 400}
    assert codes.count(400) == 34
    tiny_server.idle()
    assert "Traceback" not in tiny_server.log()
