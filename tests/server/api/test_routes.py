"""The wire formats of all routes, against a live process on a tiny random model."""

import json

import httpx
import pytest

from tests.support.tiny import tiny_tokenizer


@pytest.fixture
def client(tiny_server):
    with httpx.Client(base_url=tiny_server.url, timeout=30) as client:
        yield client


def events(client, path, body):
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-trimtab-variant"] == "base"
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


def test_generate_discloses_its_decision(client):
    response = client.post("/generate", json={"prompt": "hello", **GREEDY})
    body = response.json()
    assert response.headers["x-trimtab-variant"] == body["trimtab"]["variant"] == "base"
    assert body["trimtab"]["reason"] == "base_fits"
    assert body["trimtab"]["policy"] == "rule"
    assert 0 <= body["trimtab"]["complexity"] <= 1
    assert body["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 12


def test_a_stream_of_generate_has_the_text_of_the_plain_answer(client):
    body = {"prompt": "hello", **GREEDY}
    plain = client.post("/generate", json=body).json()
    chunks = events(client, "/generate", body)
    assert "".join(chunk["text"] for chunk in chunks) == plain["text"]
    assert chunks[-1]["finish_reason"] == "length"
    assert chunks[-1]["usage"] == plain["usage"]


def test_a_stream_of_completions_has_the_text_and_usage_of_the_plain_answer(client):
    body = {"prompt": "hello", **GREEDY}
    plain = client.post("/v1/completions", json=body).json()
    chunks = events(client, "/v1/completions", {**body, "stream_options": {"include_usage": True}})
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
    assert text == plain["choices"][0]["text"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == plain["usage"]


def test_a_stream_of_chat_has_the_text_of_the_plain_answer(client):
    body = {"messages": [{"role": "user", "content": "hello"}], **GREEDY}
    plain = client.post("/v1/chat/completions", json=body).json()
    chunks = events(client, "/v1/chat/completions", body)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == plain["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_many_prompts_and_answers_keep_their_order(client):
    body = {"prompt": ["aa", "bb", "cc"], "n": 2, **GREEDY}
    choices = client.post("/v1/completions", json=body).json()["choices"]
    assert [c["index"] for c in choices] == list(range(6))
    alone = [
        client.post("/v1/completions", json={**body, "prompt": p, "n": 1}).json()["choices"][0]
        for p in body["prompt"]
    ]
    assert [c["text"] for c in choices] == [a["text"] for a in alone for _ in range(2)]


def test_token_prompts_equal_text_prompts(client):
    ids = tiny_tokenizer().encode("hello fox")
    bodies = [{"prompt": prompt, **GREEDY} for prompt in ("hello fox", ids, [ids])]
    texts = {
        client.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in bodies
    }
    assert len(texts) == 1


def test_echo_with_logprobs_scores_the_prompt(client):
    body = {"prompt": "hello fox", "max_tokens": 0, "echo": True, "logprobs": 2, "temperature": 0}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    scores = choice["logprobs"]
    assert choice["text"] == "hello fox"
    assert scores["token_logprobs"][0] is None
    assert all(value <= 0 for value in scores["token_logprobs"][1:])
    assert "".join(scores["tokens"]) == "hello fox"
    assert scores["text_offset"] == [
        len("".join(scores["tokens"][:i])) for i in range(len(scores["tokens"]))
    ]
    more = client.post("/v1/completions", json={**body, "max_tokens": 1}).json()["choices"][0]
    assert more["logprobs"]["token_logprobs"][: len(scores["tokens"])] == scores["token_logprobs"]
    assert len(more["logprobs"]["tokens"]) == len(scores["tokens"]) + 1


def test_a_seed_reproduces_answers_that_differ_from_each_other(client):
    def write(seed):
        body = {"prompt": "hello", "temperature": 1.0, "max_tokens": 20, "seed": seed, "n": 2}
        choices = client.post("/v1/completions", json=body).json()["choices"]
        return [c["text"] for c in choices]

    assert write(3) == write(3)
    assert write(3) != write(4)
    assert write(3)[0] != write(3)[1]


def test_chat_gives_the_logprobs_of_each_token(client):
    body = {"messages": [{"role": "user", "content": "hi"}], **GREEDY}
    body |= {"logprobs": True, "top_logprobs": 2}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == 12
    assert all(len(item["top_logprobs"]) == 2 for item in content)
    assert content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"]


def test_the_model_and_its_variants_are_listed(client):
    ids = [card["id"] for card in client.get("/v1/models").json()["data"]]
    assert ids == ["tiny-llama", "tiny-llama@base"]
    assert client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-llama@base"])
def test_a_listed_model_can_be_looked_up_and_asked(client, name):
    assert client.get(f"/v1/models/{name}").json()["id"] == name
    answer = client.post("/v1/completions", json={"model": name, "prompt": "x", **GREEDY})
    assert answer.status_code == 200


def test_the_clients_request_id_is_returned(client):
    body = {"prompt": "x", **GREEDY}
    response = client.post("/generate", json=body, headers={"X-Request-Id": "mine-1"})
    assert response.headers["x-request-id"] == response.json()["id"] == "mine-1"


def test_metrics_count_requests_tokens_and_decisions(tiny_server, client):
    before = tiny_server.wait_until_idle()
    client.post("/generate", json={"prompt": "hello", **GREEDY})
    after = tiny_server.wait_until_idle()

    def growth(name):
        return after[name] - before.get(name, 0.0)

    assert growth('trimtab_requests_total{outcome="length",variant="base"}') == 1
    assert growth('trimtab_generation_tokens_total{variant="base"}') == 12
    assert growth('trimtab_decisions_total{reason="base_fits",variant="base"}') == 1
    assert growth('trimtab_time_to_first_token_seconds_count{variant="base"}') == 1
    assert growth('trimtab_time_per_output_token_seconds_count{variant="base"}') == 1
    assert after['trimtab_weights_resident_bytes{kind="base"}'] > 0
    assert "trimtab_host_memory_total_bytes" in after
