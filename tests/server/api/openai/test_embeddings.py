"""Embeddings over HTTP, by the OpenAI client, against `transformers`."""

import threading

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny import tiny_tokenizer

TEXTS = ["hello fox", "the quick brown fox", "a", "jumps over the lazy dog " * 12]


@pytest.fixture
def client(tiny_server):
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(tiny_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


def reference(model, text: str, pooling: str = "mean") -> np.ndarray:
    with torch.no_grad():
        hidden = model.model(torch.tensor([tiny_tokenizer().encode(text)])).last_hidden_state[0]
    pooled = hidden.mean(0) if pooling == "mean" else hidden[-1]
    return torch.nn.functional.normalize(pooled, dim=0).numpy()


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings_are_those_of_transformers(client, model, encoding):
    chosen = {} if encoding is None else {"encoding_format": encoding}
    found = client.embeddings.create(model="tiny-llama", input=TEXTS, **chosen)
    assert [one.index for one in found.data] == list(range(len(TEXTS)))
    for text, one in zip(TEXTS, found.data, strict=True):
        vector = one.embedding
        if isinstance(vector, str):  # the client decodes only what it asks for by itself
            import base64

            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        np.testing.assert_allclose(vector, reference(model, text), atol=2e-5)
    assert found.usage.prompt_tokens == sum(len(tiny_tokenizer().encode(text)) for text in TEXTS)


def test_the_last_hidden_state_is_another_pooling(client, model):
    found = client.embeddings.create(
        model="tiny-llama", input=TEXTS[1], extra_body={"pooling": "last"}
    )
    np.testing.assert_allclose(
        found.data[0].embedding, reference(model, TEXTS[1], "last"), atol=2e-5
    )


def test_ids_are_embedded_as_their_text(client):
    ids = tiny_tokenizer().encode(TEXTS[0])
    vectors = [
        client.embeddings.create(model="tiny-llama", input=given).data[0].embedding
        for given in (TEXTS[0], ids, [ids])
    ]
    assert vectors[0] == vectors[1] == vectors[2]


def test_more_texts_than_may_run_at_once_keep_their_order(client):
    texts = [f"{number} fox" for number in range(70)]
    found = client.embeddings.create(model="tiny-llama", input=texts)
    alone = client.embeddings.create(model="tiny-llama", input=texts[69]).data[0].embedding
    np.testing.assert_allclose(found.data[69].embedding, alone, atol=1e-6)
    assert len(found.data) == 70


def test_an_answer_goes_on_while_texts_are_embedded(client, tiny_server):
    embedding = threading.Thread(
        target=client.embeddings.create,
        kwargs={"model": "tiny-llama", "input": ["the lazy dog " * 60] * 64},
    )
    embedding.start()
    text = client.completions.create(
        model="tiny-llama",
        prompt="hello",
        max_tokens=40,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    running = embedding.is_alive()
    embedding.join()
    assert text.usage.completion_tokens == 40
    assert running, "the answer waited for all texts"
    tiny_server.wait_until_idle()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"input": []}, "input is empty"),
        ({"input": ""}, "empty"),
        ({"input": [[]]}, "empty"),
        ({"input": [[9999]]}, "no token 9999"),
        ({"input": "a", "dimensions": 7}, "cannot be shortened"),
        ({"input": "a", "pooling": "max"}, "pooling"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": ["a"] * 2049}, "at most 2048 inputs"),
        ({"input": "dog " * 4000}, "context"),
        ({"input": 7}, "input"),
        ({}, "input"),
    ],
)
def test_what_cannot_be_embedded_is_refused(tiny_server, more, said):
    response = httpx.post(f"{tiny_server.url}/v1/embeddings", json={"model": "tiny-llama", **more})
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


def test_a_variant_does_not_embed(varied_server):
    body = {"model": "mine@ffn-67", "input": "a"}
    response = httpx.post(f"{varied_server.url}/v1/embeddings", json=body)
    assert response.status_code == 400
    assert "leave the variant out" in response.json()["error"]["message"]
