"""OpenAI's own library: completions, chats, streams and errors, sync and async."""

import asyncio

import openai
import pytest

HELLO = [{"role": "user", "content": "Name three colours."}]
SHORT = {"max_tokens": 12, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def test_the_models_are_listed_and_can_be_looked_up(client, model):
    assert model in [card.id for card in client.models.list()]
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_a_chat_is_answered(client, model):
    found = client.chat.completions.create(model=model, messages=HELLO, **SHORT)
    assert found.choices[0].message.content
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 12
    assert found.usage.prompt_tokens + 12 == found.usage.total_tokens


def test_a_streamed_chat_has_the_text_and_the_usage_of_the_plain_one(client, model):
    plain = client.chat.completions.create(model=model, messages=HELLO, **SHORT)
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model=model, messages=HELLO, stream=True, stream_options=options, **SHORT
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_the_librarys_own_accumulator_reads_a_stream(client, model):
    stopped = {"stop": [" ", ",", "\n"], "temperature": 0}
    with client.chat.completions.stream(model=model, messages=HELLO, **stopped) as stream:
        contents = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "".join(contents)
    assert final.choices[0].finish_reason == "stop"


def test_several_answers_with_log_probabilities(client, model):
    found = client.chat.completions.create(
        model=model, messages=HELLO, n=2, seed=7, logprobs=True, top_logprobs=3, max_tokens=5
    )
    assert [choice.index for choice in found.choices] == [0, 1]
    for choice in found.choices:
        assert choice.logprobs.content
        assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)


def test_completions_take_texts_and_token_ids(client, model):
    text = client.completions.create(model=model, prompt=["The sea", "A tree"], n=2, **SHORT)
    assert [choice.index for choice in text.choices] == [0, 1, 2, 3]
    ids = client.completions.create(model=model, prompt=[[504, 3642], [330, 4193]], **SHORT)
    assert len(ids.choices) == 2
    chunks = list(client.completions.create(model=model, prompt="The sea", stream=True, **SHORT))
    assert "".join(c.choices[0].text for c in chunks) == text.choices[0].text


def test_an_echoed_prompt_is_scored(client, model):
    found = client.completions.create(
        model=model, prompt="The sea is blue", echo=True, logprobs=2, max_tokens=0, temperature=0
    )
    scores = found.choices[0].logprobs
    assert found.choices[0].text == "The sea is blue" == "".join(scores.tokens)
    assert scores.token_logprobs[0] is None
    assert all(value <= 0 for value in scores.token_logprobs[1:])


def test_what_the_controller_decided_is_told(client, model):
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=HELLO, extra_headers={"x-slo-ttft-ms": "5000"}, **SHORT
    )
    found = raw.parse()
    told = found.model_extra["trimtab"]
    assert raw.headers["x-trimtab-variant"] == told["variant"]
    assert 0 < told["measured_ttft_ms"] <= told["measured_ttft_ms"] + told["measured_writing_ms"]
    assert isinstance(found.usage.model_extra["trimtab_loss"], float)


def test_errors_are_the_librarys_own(client, model):
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=HELLO, temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=model, prompt="word " * 20_000)
    assert long.value.code == "context_length_exceeded"


def test_the_async_client_does_the_same_and_may_stop_reading(url, model):
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            plain = await client.chat.completions.create(model=model, messages=HELLO, **SHORT)
            stream = await client.chat.completions.create(
                model=model, messages=HELLO, stream=True, **SHORT
            )
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            left = await client.chat.completions.create(
                model=model, messages=HELLO, stream=True, max_tokens=500
            )
            await anext(aiter(left))
            await left.close()
            return plain.choices[0].message.content, text

    plain, text = asyncio.run(ask())
    assert plain == text
