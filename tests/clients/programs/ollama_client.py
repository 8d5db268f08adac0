"""Ollama's own library: chats, prompts, streams, embeddings, models and errors."""

import asyncio
import json
import math

import ollama
import pytest

HELLO = [{"role": "user", "content": "Name three colours."}]
SHORT = {"temperature": 0, "num_predict": 12}


@pytest.fixture(scope="module")
def client(url):
    return ollama.Client(host=url, timeout=60)


def test_a_chat_and_its_stream_say_the_same(client, model):
    plain = client.chat(model=model, messages=HELLO, options=SHORT)
    pieces = list(client.chat(model=model, messages=HELLO, options=SHORT, stream=True))
    assert plain.message.content == "".join(piece.message.content for piece in pieces)
    assert plain.message.content
    assert [piece.done for piece in pieces][-2:] == [False, True]
    assert pieces[-1].eval_count == plain.eval_count <= 12
    assert 0 < plain.prompt_eval_duration < plain.total_duration
    assert plain.eval_duration > 0


def test_a_prompt_is_completed_with_and_without_the_template(client, model):
    chat = client.chat(model=model, messages=HELLO, options=SHORT).message.content
    found = client.generate(model=model, prompt=HELLO[0]["content"], options=SHORT)
    assert found.response == chat
    raw = client.generate(model=model, prompt="The sea is", raw=True, options=SHORT)
    pieces = client.generate(model=model, prompt="The sea is", raw=True, options=SHORT, stream=True)
    assert raw.response == "".join(piece.response for piece in pieces)


def test_tools_and_their_results_stand_in_the_history(client, model):
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: The name of a city.
        """
        return f"Sunny in {city}."

    history = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "tool_name": "weather", "content": weather("Paris")},
    ]
    found = client.chat(model=model, messages=history, tools=[weather], options=SHORT)
    assert found.message.content or found.message.tool_calls


def test_texts_are_embedded(client, model):
    found = client.embed(model=model, input=["The sea is blue.", "A tree is green."])
    assert len(found.embeddings) == 2
    for vector in found.embeddings:
        assert math.isclose(sum(value * value for value in vector), 1, rel_tol=1e-3)
    older = client.embeddings(model=model, prompt="A tree is green.").embedding
    assert sum(a * b for a, b in zip(older, found.embeddings[1], strict=True)) > 0.999


def test_models_are_listed_and_shown(client, model):
    assert model in [card.model for card in client.list().models]
    assert [card.model for card in client.ps().models] == [model]
    shown = client.show(model)
    assert "completion" in shown.capabilities
    assert shown.modelinfo["general.parameter_count"] > 1e6


def test_the_tag_of_a_model_may_be_named(client, model):
    found = client.generate(model=f"{model}:latest", prompt="a", options=SHORT)
    assert found.done_reason in ("length", "stop")
    assert client.generate(model=model, prompt="").done_reason == "load"


def test_errors_are_the_librarys_own(client, model):
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat(model="no-such-model", messages=HELLO)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError) as bad:
        client.chat(model=model, messages=HELLO, options={"mirostat": 2})
    assert bad.value.status_code == 400
    assert "mirostat" in bad.value.error


def test_the_async_client_does_the_same(url, client, model):
    async def ask() -> str:
        many = ollama.AsyncClient(host=url)
        stream = await many.chat(model=model, messages=HELLO, options=SHORT, stream=True)
        return "".join([piece.message.content async for piece in stream])

    assert (
        asyncio.run(ask())
        == client.chat(model=model, messages=HELLO, options=SHORT).message.content
    )


def test_an_answer_keeps_to_a_format(client, model):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    found = client.chat(model=model, messages=HELLO, format=schema, options={"num_predict": 30})
    assert json.loads(found.message.content)["colour"] in ("red", "green")
    raw = client.generate(
        model=model, prompt="JSON:", raw=True, format=schema, options={"num_predict": 30}
    )
    assert json.loads(raw.response)["colour"] in ("red", "green")
