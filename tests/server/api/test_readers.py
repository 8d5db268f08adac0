"""Readers over HTTP: a live server on a tiny model whose artefact has two."""

import json

import httpx
import pytest

from server.engine.config import ModelConfig
from server.engine.loading.configured_model import load_configured_model

GREEDY = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
FRESH = iter(range(100, 300))


@pytest.fixture
def client(reading_server):
    with httpx.Client(base_url=reading_server.url, timeout=30) as client:
        yield client


def prompt(length=40):
    """Return tokens that no other prompt of this module begins with."""
    first = next(FRESH)
    return [first, *((7 * place + first) % 250 + 5 for place in range(length - 1))]


def ask(client, tokens, path="/v1/completions", **hints):
    response = client.post(path, json={"prompt": tokens, **GREEDY, "trimtab": hints})
    assert response.status_code == 200, response.text
    return response


def test_a_named_reader_reads_all_but_the_ends_of_the_prompt_shallow(client):
    response = ask(client, prompt(), read="read-70")
    found = response.json()["trimtab"]
    assert (found["read"], found["variant"]) == ("read-70", "base")
    assert response.headers["x-trimtab-read"] == "read-70"
    assert found["read_tokens"] == {"full": 4 + 16, "shallow": 20, "cached": 0}
    assert 0.5 < found["read_compute"] < 1


def test_in_full_nothing_is_shallow(client):
    response = ask(client, prompt(), read="full")
    assert response.json()["trimtab"]["read_tokens"] == {"full": 40, "shallow": 0, "cached": 0}
    assert response.json()["trimtab"]["read_compute"] == 1
    assert response.headers["x-trimtab-read"] == "full"


def test_a_reader_goes_with_a_pinned_variant_and_with_objectives(client):
    body = ask(client, prompt(), read="read-70", variant="ffn-67").json()["trimtab"]
    assert (body["read"], body["variant"], body["reason"]) == ("read-70", "ffn-67", "pinned")
    body = ask(client, prompt(), read="read-70", kv_budget=32).json()["trimtab"]
    assert (body["read"], body["kv_budget"]) == ("read-70", 32)
    body = ask(client, prompt(), read="read-40", ttft_ms=9000).json()["trimtab"]
    assert body["read"] == "read-40"


def test_a_pinned_variant_without_a_reader_reads_in_full(client):
    body = ask(client, prompt(), variant="base").json()["trimtab"]
    assert (body["read"], body["reason"]) == ("full", "pinned")


def test_what_was_read_shallow_serves_no_request_that_asks_for_more(client):
    tokens = prompt(60)
    before = ask(client, tokens, read="full").json()
    other = prompt(60)
    shallow = ask(client, other, read="read-70").json()
    in_full = ask(client, other, read="full").json()
    assert shallow["trimtab"]["read_tokens"]["shallow"] == 40
    assert in_full["trimtab"]["read_tokens"]["shallow"] == 0
    assert in_full["trimtab"]["read_tokens"]["cached"] <= 4
    again = ask(client, tokens, read="read-70").json()
    assert again["trimtab"]["read_tokens"]["cached"] == 59, "a prefix in full serves readers"
    assert again["choices"][0]["text"] == before["choices"][0]["text"]


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
def test_an_unknown_reader_is_400_with_those_that_there_are(client, path):
    body = {"prompt": "x", "trimtab": {"read": "read-7"}}
    response = client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "trimtab.read")
    assert "full, read-70, read-40" in error["message"]


def test_a_prompt_with_log_probabilities_is_read_in_full(client):
    body = {"prompt": prompt(), "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    scored = client.post("/v1/completions", json=body).json()
    assert scored["trimtab"]["read_tokens"] == {"full": 40, "shallow": 0, "cached": 0}
    refused = client.post("/v1/completions", json={**body, "trimtab": {"read": "read-70"}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "trimtab.read")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
def test_the_last_chunk_of_a_stream_says_how_the_prompt_was_read(client, path):
    text = f"{next(FRESH)} " + "the quick brown fox jumps over the lazy dog " * 8
    body = {"prompt": text, "messages": [{"role": "user", "content": text}], **GREEDY}
    body |= {"stream": True, "trimtab": {"read": "read-70"}}
    body.pop("prompt" if "chat" in path else "messages")
    with client.stream("POST", path, json=body) as response:
        assert response.headers["x-trimtab-read"] == "read-70"
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    last = json.loads(lines[-2])["trimtab"]
    assert last["read"] == "read-70"
    assert last["read_tokens"]["shallow"] > 0
    assert 0 < last["read_compute"] < 1


def test_the_models_list_the_readers_with_what_was_measured(client):
    for card in client.get("/v1/models").json()["data"]:
        measured, other = card["trimtab"]["readers"]
        assert (measured["name"], measured["depth"], measured["compute"]) == ("read-70", 2, 0.7)
        assert (measured["kl"], measured["kl_half_width"]) == (0.05, 0.01)
        assert other == {"name": "read-40", "depth": 1}


def test_metrics_count_by_reader_and_by_how_tokens_were_read(reading_server, client):
    before = reading_server.wait_until_idle()
    ask(client, prompt(), read="read-70")
    ask(client, prompt(), read="full")
    after = reading_server.wait_until_idle()

    def growth(name):
        return after[name] - before.get(name, 0.0)

    assert growth('trimtab_reader_requests_total{outcome="length",reader="read-70"}') == 1
    assert growth('trimtab_reader_requests_total{outcome="length",reader="full"}') == 1
    assert growth('trimtab_read_tokens_total{read="full",reader="read-70"}') == 20
    assert growth('trimtab_read_tokens_total{read="shallow",reader="read-70"}') == 20
    assert growth('trimtab_read_tokens_total{read="full",reader="full"}') == 40
    assert growth('trimtab_predicted_loss_nats_count{reader="read-70"}') == 1
    assert after['trimtab_weights_resident_bytes{kind="readers"}'] > 0
    assert after['trimtab_reader_info{depth="2",model="mine",reader="read-70"}'] == 1


def test_the_status_has_the_readers_and_how_the_latest_answers_were_read(client):
    ask(client, prompt(), read="read-70")
    status = client.get("/trimtab/status").json()
    assert [reader["name"] for reader in status["readers"]] == ["read-70", "read-40"]
    assert status["recent"][0]["read"] == "read-70"
    assert status["recent"][0]["read_tokens"]["shallow"] == 20


@pytest.mark.parametrize("readers", [True, False])
def test_a_server_without_readers_has_none_and_no_maps(reading_folders, readers):
    folder, artefact = reading_folders
    model = load_configured_model(ModelConfig(str(folder), artefact, readers=readers))
    assert list(model.readers) == (["read-70", "read-40"] if readers else [])
    assert bool(model.maps) == readers
