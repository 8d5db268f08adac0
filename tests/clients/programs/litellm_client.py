"""LiteLLM, which gateways use: chats and completions, as an OpenAI server and as vLLM's."""

import asyncio

import litellm
import pytest

HELLO = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(params=["openai", "hosted_vllm"])
def ask(request, url, model):
    """Return the arguments of a call, for each of two ways that LiteLLM knows."""
    return {
        "model": f"{request.param}/{model}",
        "api_base": f"{url}/v1",
        "api_key": "none",
        "max_tokens": 12,
        "temperature": 0,
        "num_retries": 0,
    }


def test_a_chat_and_its_stream_say_the_same(ask):
    plain = litellm.completion(messages=HELLO, **ask)
    assert plain.choices[0].message.content
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    options = {"include_usage": True}
    chunks = list(litellm.completion(messages=HELLO, stream=True, stream_options=options, **ask))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == plain.choices[0].message.content
    rebuilt = litellm.stream_chunk_builder(chunks, messages=HELLO)
    assert rebuilt.choices[0].message.content == text
    assert rebuilt.usage.completion_tokens == plain.usage.completion_tokens


def test_the_async_call_does_the_same(ask):
    plain = litellm.completion(messages=HELLO, **ask)
    found = asyncio.run(litellm.acompletion(messages=HELLO, **ask))
    assert found.choices[0].message.content == plain.choices[0].message.content


def test_hints_pass_through_and_are_answered(ask):
    found = litellm.completion(
        messages=HELLO, extra_body={"trimtab": {"variant": "base"}}, seed=3, n=2, **ask
    )
    assert [choice.index for choice in found.choices] == [0, 1]
    assert found.model_extra["trimtab"]["reason"] == "pinned"


def test_text_completions(url, model):
    found = litellm.text_completion(
        model=f"text-completion-openai/{model}", api_base=f"{url}/v1", api_key="none",
        prompt="The sea is", max_tokens=4, temperature=0,
    )  # fmt: skip
    assert found.choices[0].text


def test_errors_are_litellms_own(ask):
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=HELLO, **{**ask, "temperature": -1})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=HELLO, **{**ask, "model": "openai/no-such-model"})
    long = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=long, **ask)
