"""What a response tells of an answer: tokens, their positions, log-probabilities and usage."""

import itertools
import json

import httpx
import pytest
import torch

from tests.support.tiny import tiny_model, tiny_tokenizer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
PROMPT = "<|user|>naïve 🙂<|end|>fox"
TOKENIZER = tiny_tokenizer()


@pytest.fixture
def client(tiny_server):
    with httpx.Client(base_url=tiny_server.url, timeout=30) as client:
        yield client


def events(client, path, body):
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines), "an event was broken in two"
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def data_of(token):
    if token.startswith("bytes:"):
        return bytes.fromhex(token.removeprefix("bytes:").replace("\\x", ""))
    return token.encode()


def assert_consistent(choice):
    """Check that each token stands at its offset in the text."""
    text, logprobs = choice["text"], choice["logprobs"]
    special = {str(added) for added in TOKENIZER.added_tokens_decoder.values()}
    offsets = [*logprobs["text_offset"], len(text)]
    assert offsets == sorted(offsets)
    for token, begin, end in zip(logprobs["tokens"], offsets, offsets[1:], strict=False):
        whole = token and "bytes:" not in token and token not in special
        if whole and begin < len(text):
            assert text[begin : begin + len(token)] == token[: len(text) - begin]
            assert end - begin == len(token[: len(text) - begin])


@pytest.mark.parametrize("prompt", [PROMPT, TOKENIZER.encode(PROMPT, add_special_tokens=False)])
def test_an_echoed_prompt_keeps_its_special_tokens(client, prompt):
    ids = TOKENIZER.encode(PROMPT, add_special_tokens=False)
    body = {"prompt": prompt, "echo": True, "logprobs": 1, **GREEDY, "max_tokens": 1}
    choice = client.post(COMPLETIONS, json=body).json()["choices"][0]
    assert choice["text"].startswith(PROMPT)
    found = choice["logprobs"]
    assert len(found["tokens"]) == len(ids) + 1
    assert b"".join(data_of(t) for t in found["tokens"][: len(ids)]).decode() == PROMPT
    assert found["text_offset"][-1] == len(PROMPT)
    spans = TOKENIZER(PROMPT, return_offsets_mapping=True, add_special_tokens=False)
    assert found["text_offset"][:-1] == [start for start, _ in spans["offset_mapping"]]
    plain = client.post(COMPLETIONS, json={**body, "logprobs": None}).json()["choices"][0]
    assert plain["text"] == choice["text"]
    chunks = events(client, COMPLETIONS, {**body, "logprobs": None})
    assert "".join(c["choices"][0]["text"] for c in chunks) == choice["text"]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("number", range(6))
def test_tokens_offsets_and_text_agree(client, echo, number):
    body = {"prompt": f"{PROMPT}{number}", "logprobs": 2, "echo": echo, **GREEDY}
    assert_consistent(client.post(COMPLETIONS, json=body).json()["choices"][0])


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("number", range(6))
def test_a_stream_gives_the_tokens_and_offsets_of_the_plain_answer(client, number, stopped):
    body = {"prompt": f"number {number}", "logprobs": 2, **GREEDY}
    if stopped:  # by three characters of the answer without a stop string
        text = client.post(COMPLETIONS, json=body).json()["choices"][0]["text"]
        body["stop"] = [text[7:10]]
    plain = client.post(COMPLETIONS, json=body).json()["choices"][0]
    assert_consistent(plain)
    assert (plain["stop_reason"] is not None) == stopped
    choices = [chunk["choices"][0] for chunk in events(client, COMPLETIONS, body)]
    assert "".join(choice["text"] for choice in choices) == plain["text"]
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"] is not None]
    for name in ("tokens", "text_offset", "token_logprobs"):
        joined = list(itertools.chain(*(part[name] for part in parts)))
        whole = plain["logprobs"][name]
        assert joined == (pytest.approx(whole) if name == "token_logprobs" else whole)


def test_chat_logprobs_have_the_bytes_of_each_token(client):
    body = {"messages": [{"role": "user", "content": "🙂"}], **GREEDY}
    body |= {"logprobs": True, "top_logprobs": 5}
    entries = []
    for seed in range(3):
        sampled = {**body, "temperature": 2.0, "seed": seed}
        content = client.post(CHAT, json=sampled).json()["choices"][0]["logprobs"]["content"]
        entries += [entry for item in content for entry in (item, *item["top_logprobs"])]
    assert any(entry["token"].startswith("bytes:") for entry in entries)
    for entry in entries:
        assert data_of(entry["token"]) == bytes(entry["bytes"])
        assert "�" not in entry["token"]


def test_a_prompt_that_was_cached_counts_once(client):
    prompts = ["the quick brown fox jumps over the lazy dog " * 3, "one more " * 20]

    def used(prompt, count):
        body = {"prompt": prompt, "n": count, **GREEDY, "max_tokens": 2}
        found = client.post(COMPLETIONS, json=body).json()["usage"]
        return found["prompt_tokens"], found["prompt_tokens_details"]["cached_tokens"]

    for prompt in prompts:
        used(prompt, 1)
    alone = [used(prompt, 1) for prompt in prompts]
    assert all(0 < cached < read for read, cached in alone)
    assert [used(prompt, 4) for prompt in prompts] == alone
    assert used(prompts, 3) == tuple(map(sum, zip(*alone, strict=True)))
    body = {"prompt": prompts, "n": 3, **GREEDY, "stream_options": {"include_usage": True}}
    chunks = events(client, COMPLETIONS, body)
    assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == sum(
        cached for _, cached in alone
    )


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_separator_in_a_text_does_not_split_an_event(client, separator):
    """`httpx` and `str.splitlines` end lines at all of these characters."""
    body = {"prompt": f"one{separator}two", "echo": True, **GREEDY, "max_tokens": 2}
    chunks = events(client, COMPLETIONS, body)
    assert chunks[0]["choices"][0]["text"].startswith(f"one{separator}two")


def test_streams_are_ascii(client):
    body = {"prompt": "東京 🙂", "echo": True, **GREEDY, "stream": True}
    with client.stream("POST", COMPLETIONS, json=body) as response:
        assert response.read().isascii()


@pytest.mark.parametrize("length", [2, 511, 512])
def test_a_prompt_that_fills_the_context_can_be_scored(client, tiny_server, length):
    """As lm-eval asks, with the log-probabilities that `transformers` computes."""
    prompts = [[(7 * at + start) % 280 + 5 for at in range(length)] for start in (0, 3)]
    body = {"prompt": prompts, "max_tokens": 0, "logprobs": 1, "echo": True, "temperature": 0}
    before = tiny_server.wait_until_idle()
    found = client.post(COMPLETIONS, json=body).json()
    with torch.no_grad():
        expected = tiny_model()(torch.tensor(prompts)).logits.log_softmax(-1)
    assert found["usage"]["completion_tokens"] == 0
    for prompt, choice, row in zip(prompts, found["choices"], expected, strict=True):
        scores = choice["logprobs"]["token_logprobs"]
        wanted = row[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist()
        assert choice["finish_reason"] == "length"
        assert scores[0] is None
        assert scores[1:] == pytest.approx(wanted, abs=1e-3)
        best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][1:]]
        assert best == pytest.approx(row[:-1].amax(-1).tolist(), abs=1e-3)
    growth = {
        name: value - before.get(name, 0) for name, value in tiny_server.wait_until_idle().items()
    }
    assert growth['trimtab_requests_total{outcome="length",variant="base"}'] == 2
    assert not any(value for name, value in growth.items() if "objectives_total" in name)


def test_a_prompt_with_no_room_behind_it_is_scored_but_not_continued(client):
    full = {"prompt": [5] * 512, "echo": True}
    assert client.post(COMPLETIONS, json={**full, "max_tokens": 0}).status_code == 200
    for more in ({"max_tokens": 1}, {}, {"max_tokens": 1, "logprobs": 1}):
        response = client.post(COMPLETIONS, json={**full, **more})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
    long = {**full, "prompt": [5] * 513, "max_tokens": 0}
    assert client.post(COMPLETIONS, json=long).status_code == 400
