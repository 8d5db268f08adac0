"""Routes that only tokenise, against the tokenizer itself."""

import httpx
import pytest

from tests.support.tiny import CHAT, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MESSAGES = [{"role": "user", "content": "hello fox"}]


@pytest.fixture
def client(tiny_server):
    with httpx.Client(base_url=tiny_server.url, timeout=30) as client:
        yield client


def tokens(client, **body) -> dict:
    response = client.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_prompt_is_tokenized_as_by_the_tokenizer(client):
    found = tokens(client, prompt="hello fox é", add_special_tokens=False, return_token_strs=True)
    expected = TOKENIZER.encode("hello fox é", add_special_tokens=False)
    assert found["tokens"] == expected
    assert found["count"] == len(expected)
    assert found["max_model_len"] == 512
    assert len(found["token_strs"]) == len(expected)


def test_content_is_tokenized_as_llama_cpp_has_it(client):
    found = tokens(client, content="the é", with_pieces=True)["tokens"]
    assert [one["id"] for one in found] == TOKENIZER.encode("the é", add_special_tokens=False)
    pieces = [p.encode() if isinstance(p := one["piece"], str) else bytes(p) for one in found]
    assert b"".join(pieces).decode() == "the é"


def test_names_of_control_tokens_can_be_text(client):
    control = tokens(client, content="<|end|>")["tokens"]
    text = tokens(client, content="<|end|>", parse_special=False)["tokens"]
    assert control == [TOKENIZER.convert_tokens_to_ids("<|end|>")]
    assert len(text) > 1


def test_messages_are_tokenized_as_by_their_template(client):
    expected = TOKENIZER.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert tokens(client, messages=MESSAGES)["tokens"] == expected
    without = TOKENIZER.apply_chat_template(MESSAGES, add_generation_prompt=False)["input_ids"]
    found = tokens(client, messages=MESSAGES, add_generation_prompt=False)
    assert found["tokens"] == without


def test_a_template_is_applied(client):
    response = client.post("/apply-template", json={"messages": MESSAGES})
    expected = TOKENIZER.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert response.json() == {"prompt": expected}


def test_tokens_are_text_again(client):
    ids = TOKENIZER.encode("<|user|>hello fox é")
    response = client.post("/detokenize", json={"tokens": ids}).json()
    assert response == {"prompt": TOKENIZER.decode(ids), "content": TOKENIZER.decode(ids)}
    assert client.post("/detokenize", json={"tokens": []}).json()["prompt"] == ""


def test_the_tokenizer_is_described_as_lm_eval_needs_it(client):
    info = client.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|end|>"
    assert info["bos_token"] == "<s>"
    assert info["pad_token"] is None
    assert info["chat_template"] == CHAT


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/tokenize", {}, "one of prompt, content and messages"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "one of prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages"),
        ("/detokenize", {"tokens": [384]}, "no token 384"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {}, "tokens"),
        ("/apply-template", {"messages": []}, "messages is empty"),
    ],
)
def test_what_cannot_be_tokenized_is_refused(client, path, body, said):
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


def test_another_model_is_not_found(client):
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
        assert client.post(path, json={**body, "model": "other"}).status_code == 404
