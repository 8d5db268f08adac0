"""What clients may ask of tokens: ids, ranks, truncation, special tokens, the best answers."""

import json

import httpx
import pytest
import torch

from tests.support.tiny import tiny_model, tiny_tokenizer

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
HELLO = [{"role": "user", "content": "hello fox"}]
TOKENIZER = tiny_tokenizer()
IDS = TOKENIZER.encode("the quick brown fox jumps", add_special_tokens=False)


@pytest.fixture
def client(tiny_server):
    with httpx.Client(base_url=tiny_server.url, timeout=60) as client:
        yield client


def ask(client, path, body):
    response = client.post(path, json={**GREEDY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def chunks(client, path, body):
    with client.stream("POST", path, json={**GREEDY, **body, "stream": True}) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_prompt_logprobs_are_those_of_transformers_with_their_ranks(client):
    body = {"prompt": IDS, "prompt_logprobs": 2}
    scores = ask(client, COMPLETIONS, body)["choices"][0]["prompt_logprobs"]
    with torch.no_grad():
        rows = tiny_model()(torch.tensor([IDS])).logits[0].log_softmax(-1)
    assert scores[0] is None
    assert len(scores) == len(IDS)
    for row, token, entry in zip(rows, IDS[1:], scores[1:], strict=False):
        own = entry[str(token)]
        assert own["logprob"] == pytest.approx(row[token].item(), abs=1e-3)
        assert own["rank"] == 1 + int((row > row[token]).sum())
        best = {str(one) for one in row.topk(2).indices.tolist()}
        assert set(entry) == best | {str(token)}
        assert {entry[one]["rank"] for one in best} == {1, 2}
        assert own["decoded_token"] == TOKENIZER.decode([token])
    found = ask(client, CHAT, {"messages": HELLO, "prompt_logprobs": 0, "return_token_ids": True})
    assert len(found["prompt_logprobs"]) == len(found["prompt_token_ids"])
    only = ask(client, COMPLETIONS, {**body, "max_tokens": 0})
    assert only["choices"][0]["prompt_logprobs"][1:] == scores[1:]
    assert only["usage"]["completion_tokens"] == 0


def test_token_ids_decode_to_the_text_and_a_stream_has_the_same(client):
    body = {"prompt": ["aa fox", "b"], "n": 2, "return_token_ids": True}
    plain = ask(client, COMPLETIONS, body)["choices"]
    for choice in plain:
        prompt = body["prompt"][choice["index"] // 2]
        assert TOKENIZER.decode(choice["prompt_token_ids"], skip_special_tokens=True) == prompt
        assert TOKENIZER.decode(choice["token_ids"], skip_special_tokens=True) == choice["text"]
        assert len(choice["token_ids"]) == 6
    streamed = [chunk["choices"][0] for chunk in chunks(client, COMPLETIONS, body)]
    for choice in plain:
        own = [one for one in streamed if one["index"] == choice["index"]]
        assert [token for one in own for token in one["token_ids"]] == choice["token_ids"]
        prompts = [one["prompt_token_ids"] for one in own if "prompt_token_ids" in one]
        assert prompts == [choice["prompt_token_ids"]]


def test_a_chats_token_ids_are_the_same_in_a_stream(client):
    body = {"messages": HELLO, "return_token_ids": True}
    plain = ask(client, CHAT, body)
    parts = chunks(client, CHAT, body)
    assert parts[0]["prompt_token_ids"] == plain["prompt_token_ids"]
    streamed = [token for part in parts for token in part["choices"][0].get("token_ids", ())]
    assert streamed == plain["choices"][0]["token_ids"]
    assert len(streamed) == plain["usage"]["completion_tokens"]


def test_tokens_may_be_named_by_their_ids(client):
    names = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    choice = ask(client, COMPLETIONS, {"prompt": IDS, "logprobs": 2, "echo": True, **names})
    (choice,) = choice["choices"]
    expected = [f"token_id:{token}" for token in IDS + choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == expected
    assert all(name in top for name, top in
               zip(expected[1:], choice["logprobs"]["top_logprobs"][1:], strict=True))  # fmt: skip
    chat = {"messages": HELLO, "logprobs": True, "top_logprobs": 1, **names}
    (choice,) = ask(client, CHAT, chat)["choices"]
    found = [item["token"] for item in choice["logprobs"]["content"]]
    assert found == [f"token_id:{token}" for token in choice["token_ids"]]


@pytest.mark.parametrize("prompt", [IDS, TOKENIZER.decode(IDS)])
def test_the_last_tokens_of_a_prompt_are_kept(client, prompt):
    body = {"prompt": prompt, "truncate_prompt_tokens": 3, "return_token_ids": True}
    assert ask(client, COMPLETIONS, body)["choices"][0]["prompt_token_ids"] == IDS[-3:]


def test_a_prompt_beyond_the_context_is_cut_to_what_leaves_room(client):
    words = "".join(f" word{at}" for at in range(700))
    ids = TOKENIZER.encode(words, add_special_tokens=False)
    for prompt in (words, ids):
        body = {"prompt": prompt, "truncate_prompt_tokens": -1, "return_token_ids": True}
        (choice,) = ask(client, COMPLETIONS, body)["choices"]
        assert choice["prompt_token_ids"] == ids[-(512 - 6) :]
        assert len(choice["token_ids"]) == 6
    chat = {"messages": [{"role": "user", "content": words}], "max_completion_tokens": 4}
    found = ask(client, CHAT, {**chat, "truncate_prompt_tokens": -1})
    assert found["usage"]["prompt_tokens"] == 512 - 4


def test_special_tokens_are_shown_if_they_are_not_to_be_skipped(client):
    special = TOKENIZER.convert_tokens_to_ids("<|end|>")
    body = {"prompt": "x", "logit_bias": {str(special): 100}, "logprobs": 0, "max_tokens": 3}
    hidden = ask(client, COMPLETIONS, body)["choices"][0]
    shown = ask(client, COMPLETIONS, {**body, "skip_special_tokens": False})["choices"][0]
    assert (hidden["text"], shown["text"]) == ("", 3 * "<|end|>")
    assert hidden["logprobs"]["text_offset"] == [0, 0, 0]
    assert shown["logprobs"]["text_offset"] == [0, 7, 14]


def test_the_best_answers_are_those_with_the_highest_mean(client):
    body = {"prompt": ["a fox", "b"], "n": 4, "temperature": 1.5, "seed": 3, "logprobs": 0}
    every = ask(client, COMPLETIONS, body)["choices"]
    best = ask(client, COMPLETIONS, {**body, "n": 2, "best_of": 4})
    assert best["usage"]["completion_tokens"] == 8 * 6
    for prompt in range(2):
        own = every[4 * prompt : 4 * prompt + 4]
        own.sort(key=lambda one: -sum(one["logprobs"]["token_logprobs"]))
        found = best["choices"][2 * prompt : 2 * prompt + 2]
        assert [one["text"] for one in found] == [one["text"] for one in own[:2]]
        assert [one["index"] for one in found] == [2 * prompt, 2 * prompt + 1]
    bare = ask(client, COMPLETIONS, {**body, "n": 2, "best_of": 4, "logprobs": None})["choices"]
    assert [one["text"] for one in bare] == [one["text"] for one in best["choices"]]
    assert all(one["logprobs"] is None for one in bare)


@pytest.mark.parametrize("length", [0, 6])
def test_a_streamed_echo_has_the_scores_of_the_plain_one(client, length):
    body = {"prompt": ["hello fox", "b"], "echo": True, "logprobs": 1, "max_tokens": length}
    plain = ask(client, COMPLETIONS, body)["choices"]
    parts = [chunk["choices"][0] for chunk in chunks(client, COMPLETIONS, body)]
    for choice in plain:
        own = [one for one in parts if one["index"] == choice["index"]]
        assert "".join(one["text"] for one in own) == choice["text"]
        for name in ("tokens", "text_offset"):
            joined = [it for one in own if one["logprobs"] for it in one["logprobs"][name]]
            assert joined == choice["logprobs"][name]


def test_usage_comes_with_each_chunk_only_beside_that_at_the_end(client):
    body = {"prompt": "hello", "stream_options": {"include_usage": True}}
    both = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    every = chunks(client, COMPLETIONS, {**body, **both})
    counts = [chunk["usage"]["completion_tokens"] for chunk in every]
    assert counts == sorted(counts)
    assert counts[-1] == 6
    assert [("usage" in chunk) for chunk in chunks(client, COMPLETIONS, body)][:-1].count(True) == 0
    alone = {"stream_options": {"continuous_usage_stats": True}}
    assert not any("usage" in chunk for chunk in chunks(client, CHAT, {"messages": HELLO, **alone}))


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (COMPLETIONS, {"prompt": "x", "best_of": 2, "n": 3}, "best_of"),
        (COMPLETIONS, {"prompt": "x", "best_of": 2, "stream": True}, "best_of"),
        (CHAT, {"messages": HELLO, "best_of": 2}, "best_of"),
        (COMPLETIONS, {"prompt": "x", "prompt_logprobs": 21}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt": "x", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        (COMPLETIONS, {"prompt": "x", "truncate_prompt_tokens": 9999}, "room"),
        ("/generate", {"prompt": "x", "return_token_ids": True}, "return_token_ids"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(client, path, body, says):
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
