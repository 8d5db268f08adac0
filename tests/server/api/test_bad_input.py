"""Invalid requests get a 4xx in the OpenAI envelope, and leave no slot occupied."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
JSON = {"content-type": "application/json"}
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
    (GENERATE, {"prompt": "x", "trimtab": {"variant": ""}}, "no variant ''"),
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
    (CHAT, {"messages": HI, "response_format": {"type": "grammar"}}, "response_format"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, "top_logprobs"),
    (GENERATE, {"prompt": "x", "min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    (GENERATE, {"prompt": "x", "min_tokens": 129}, "min_tokens"),
    (GENERATE, {"prompt": "x", "stop_token_ids": [384]}, "vocabulary"),
    (GENERATE, {"prompt": "x", "stop_token_ids": [1] * 2000}, "stop_token_ids"),
    (GENERATE, {"prompt": "x", "stop": ["a"] * 17}, "stop"),
    (GENERATE, {"prompt": "x", "stop": "a" * 600}, "stop"),
    (GENERATE, {"prompt": "x", "logit_bias": {str(i): 1 for i in range(2000)}}, "bias"),
    (GENERATE, {"prompt": "x", "max_tokens": 10**400}, "max_tokens"),
    (GENERATE, {"prompt": "x", "echo": True}, "echo"),
    (GENERATE, {"prompt": "x", "max_new_tokens": 5}, "use max_tokens"),
    (GENERATE, {"prompt": "x", "guided_json": {}, "guided_regex": "a"}, "guided_regex"),
    (GENERATE, {"prompt": "x", **{f"field{i}": 1 for i in range(300)}}, "fields"),
    (COMPLETIONS, {"prompt": ["a", 5]}, "prompt"),
    (COMPLETIONS, {"prompt": [True]}, "prompt"),
    (COMPLETIONS, {"prompt": {"text": "x"}}, "prompt"),
    (COMPLETIONS, {"prompt": [""] * 60_000}, "answers"),
    (COMPLETIONS, {"prompt": [[5]] * 30_000}, "answers"),
    (COMPLETIONS, {"prompt": [[5]] + [["a"]] * 30_000}, "prompt"),
    (COMPLETIONS, {"prompt": [5] * 250_000}, "context"),
    (COMPLETIONS, {"prompt": "x", "best_of": 500}, "answers"),
    (CHAT, {"messages": HI * 5000}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 4_000_000}]}, "context"),
    (CHAT, {"messages": HI, "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"chat_template": "{{ 1/0 }}"}}, "template"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"tokenizer_kwargs": {}}}, "tokenizer_kwargs"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"frobnicate": 1}}, "frobnicate"),
    (CHAT, {"messages": HI, "continue_final_message": True, "add_generation_prompt": True},
     "continue_final_message"),
]  # fmt: skip


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
def test_an_invalid_body_is_refused_with_the_reason(client, path, body, says):
    error = refused(client.post(path, json=body))
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("text", ['{"prompt": ', "[1, 2]", "null", '"x"', "\x00", "", "{'a': 1}"])
def test_malformed_json_is_refused(client, text):
    refused(client.post(GENERATE, content=text, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("field", ["temperature", "top_p", "presence_penalty", "min_p"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(client, field, value):
    text = f'{{"prompt": "x", "{field}": {value}}}'
    refused(client.post(GENERATE, content=text, headers={"content-type": "application/json"}))


RAW = [
    (COMPLETIONS, '{"prompt": %s}'),
    (COMPLETIONS, '{"prompt": "x", "model": %s}'),
    (COMPLETIONS, '{"prompt": "x", "stop": %s}'),
    (COMPLETIONS, '{"prompt": "x", "user": %s}'),
    (COMPLETIONS, '{"prompt": "x", %s: 1}'),
    (GENERATE, '{"prompt": "x", "trimtab": {"variant": %s}}'),
    (GENERATE, '{"prompt": "x", "trimtab": {%s: 1}}'),
    (GENERATE, '{"prompt": "x", "logit_bias": {%s: 1}}'),
    (CHAT, '{"messages": [{"role": %s, "content": "x"}]}'),
    (CHAT, '{"messages": [{"role": "user", "content": %s}]}'),
    (CHAT, '{"messages": [{"role": "user", "content": [{"type": "text", "text": %s}]}]}'),
    (CHAT, '{"messages": [{"role": "user", "content": "x", "name": %s}]}'),
    (CHAT, '{"messages": [], "chat_template_kwargs": {"a": %s}}'),
]


@pytest.mark.parametrize("media", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_of_another_media_type_is_refused(client, media):
    found = client.post(GENERATE, content=b'{"prompt": "x"}', headers={"content-type": media})
    refused(found, 415)
    assert "Content-Type: application/json" in found.json()["error"]["message"]


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "Application/JSON"])
def test_the_media_type_may_have_parameters_and_capitals(client, media):
    body = b'{"prompt": "x", "max_tokens": 1}'
    assert client.post(GENERATE, content=body, headers={"content-type": media}).status_code == 200


@pytest.mark.parametrize(("path", "body"), RAW)
@pytest.mark.parametrize("text", ['"\\ud800"', '"\\udc00x"', "[" * 900 + "]" * 900, "1e400"])
def test_malformed_values_are_refused_in_every_place(client, path, body, text):
    if text == "1e400" and "user" in body and "messages" not in body:
        pytest.skip("a field that is not read")
    refused(client.post(path, content=body % text, headers=JSON))


@pytest.mark.parametrize(
    "target", ["/v1/models/%ff", "/v1/models/%ED%A0%80", "/%00", "/health%f0?a=%ff", "/metrics/%fe"]
)
def test_a_path_that_is_not_utf8_is_not_found(client, target):
    refused(client.get(target), 404)


def test_an_error_is_logged_in_one_short_line(tiny_server, client):
    before = len(tiny_server.log())
    refused(
        client.post(COMPLETIONS, json={"prompt": "x", "model": "no\nsuch\x1b[0m" + "x" * 400}), 404
    )
    lines = tiny_server.log()[before:].splitlines()
    assert len([line for line in lines if "such" in line]) == 1
    assert all(len(line) < 1000 and "\x1b" not in line for line in lines)


def test_the_default_length_is_cut_to_the_room_that_the_prompt_leaves(client):
    prompt = [5] * 505
    body = {"prompt": prompt, "ignore_eos": True}
    assert client.post(COMPLETIONS, json=body).json()["usage"]["completion_tokens"] == 7
    refused(client.post(COMPLETIONS, json={**body, "max_tokens": 8}))
    body = {"prompt": "x" * 500, "ignore_eos": True}
    assert client.post(GENERATE, json=body).json()["usage"]["completion_tokens"] == 12
    refused(client.post(COMPLETIONS, json={**body, "min_tokens": 13}))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a<|end|>b"}]}),
        (COMPLETIONS, {"prompt": "a<|end|>b"}),
        (GENERATE, {"prompt": "a<|end|>b"}),
    ],
)
def test_plain_text_makes_text_of_control_tokens(client, path, body):
    def tokens(path, **body):
        response = client.post(path, json={"max_tokens": 1, **body})
        return response.json()["usage"]["prompt_tokens"]

    plain = {"plain_text": True}
    letters = len("<|end|>")
    assert tokens(path, **body, trimtab=plain) == tokens(path, **body) + letters - 1


def test_health_answers_promptly_while_large_prompts_arrive(tiny_server, client):
    bodies = [
        (GENERATE, json.dumps({"prompt": "x" * 4_000_000})),
        (GENERATE, json.dumps({"prompt": "fox " * 1_000_000})),
        (COMPLETIONS, '{"prompt":[' + ",".join(['""'] * 1_000_000) + "]}"),
        (CHAT, json.dumps({"messages": [{"role": "user", "content": "x" * 4_000_000}]})),
    ]

    def send_large(number):
        path, body = bodies[number % len(bodies)]
        with httpx.Client(base_url=tiny_server.url, timeout=60) as client:
            return client.post(path, content=body, headers=JSON).status_code

    with ThreadPoolExecutor(4) as pool:
        codes = pool.map(send_large, range(16))
        longest = 0.0
        for _ in range(20):
            began = time.monotonic()
            assert client.get("/health").status_code == 200
            longest = max(longest, time.monotonic() - began)
        assert set(codes) == {400}
    assert longest < 2, "5 to 8 s while one was tokenised in the event loop"


def test_every_decision_has_one_end(tiny_server):
    def ended(found):
        return sum(v for k, v in found.items() if k.startswith("trimtab_requests_total"))

    def decided(found):
        return sum(v for k, v in found.items() if k.startswith("trimtab_decisions_total"))

    def ask(number):
        path, body, _ = bad[number]
        good = {"prompt": f"number {number}", "max_tokens": 3}
        with httpx.Client(base_url=tiny_server.url, timeout=60) as client:
            first = client.post(path, json=body).status_code
            return first, client.post(GENERATE, json=good).status_code

    bad = CASES[::2]
    before = tiny_server.wait_until_idle()
    with ThreadPoolExecutor(4) as pool:
        codes = set(pool.map(ask, range(len(bad))))
    assert codes == {(400, 200)}
    after = tiny_server.wait_until_idle()
    assert decided(after) - decided(before) == len(bad)
    assert ended(after) - ended(before) == len(bad)


def test_unknown_models_paths_and_methods_are_refused(client):
    body = {"prompt": "x", "model": "gpt-9"}
    assert refused(client.post(COMPLETIONS, json=body), 404)["code"] == "model_not_found"
    refused(client.post(CHAT, json={"messages": HI, "model": "tiny-llama@ffn-1"}), 404)
    refused(client.get("/nothing"), 404)
    refused(client.get(GENERATE), 405)


def test_a_body_that_is_too_large_is_refused(client):
    big = json.dumps({"prompt": "x" * 10_000_000})
    headers = {"content-type": "application/json"}
    refused(client.post(GENERATE, content=big, headers=headers), 413)

    def pieces():
        for _ in range(200):
            yield b"x" * 50_000

    refused(client.post(GENERATE, content=pieces(), headers=headers), 413)


def test_a_disconnect_frees_the_slot(tiny_server, client):
    body = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with client.stream("POST", COMPLETIONS, json=body) as response:
        next(response.iter_lines())
    tiny_server.wait_until_idle()

    # Without a stream: the connection is closed while the server is still writing.
    plain = json.dumps({"prompt": "x", "max_tokens": 400, "ignore_eos": True, "n": 8}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", tiny_server.port)) as raw:
        raw.sendall(f"{head}Content-Length: {len(plain)}\r\n\r\n".encode() + plain)
        time.sleep(0.2)
    found = tiny_server.wait_until_idle()
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
    tiny_server.wait_until_idle()
    assert "Traceback" not in tiny_server.log()
