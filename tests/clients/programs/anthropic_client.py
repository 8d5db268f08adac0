"""Anthropic's own library: messages, streams, tools in the history, counts and errors."""

import asyncio
import json

import anthropic
import pytest

HELLO = [{"role": "user", "content": "Name three colours."}]
SHORT = {"max_tokens": 12, "extra_body": {"temperature": 0}}
TOOL = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def client(url):
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60)


def test_a_message_is_answered(client, model):
    found = client.messages.create(model=model, messages=HELLO, system="Be brief.", **SHORT)
    assert found.role == "assistant"
    assert found.content[0].text
    assert found.stop_reason in ("end_turn", "max_tokens")
    assert 0 < found.usage.output_tokens <= 12


def test_a_stream_has_the_text_of_the_plain_message(client, model):
    plain = client.messages.create(model=model, messages=HELLO, **SHORT)
    with client.messages.stream(model=model, messages=HELLO, **SHORT) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == plain.content[0].text == final.content[0].text
    assert final.stop_reason == plain.stop_reason
    assert final.usage.output_tokens == plain.usage.output_tokens


def test_a_stop_sequence_is_named(client, model):
    plain = client.messages.create(model=model, messages=HELLO, **SHORT).content[0].text
    word = plain.split()[2]
    found = client.messages.create(model=model, messages=HELLO, stop_sequences=[word], **SHORT)
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", word)
    assert word not in found.content[0].text


def test_an_answer_that_is_begun_is_continued(client, model):
    begun = [*HELLO, {"role": "assistant", "content": "The three colours are: 1."}]
    found = client.messages.create(model=model, messages=begun, **SHORT)
    assert not found.content[0].text.startswith("The three")


def test_tools_and_their_results_stand_in_the_history(client, model):
    history = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Paris"}}
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "Sunny."}],
        },
    ]
    found = client.messages.create(model=model, messages=history, tools=[TOOL], **SHORT)
    assert found.content


def test_tokens_are_counted_as_they_are_used(client, model):
    asked = {"model": model, "messages": HELLO, "system": "Be brief.", "tools": [TOOL]}
    counted = client.messages.count_tokens(**asked).input_tokens
    used = client.messages.create(**asked, **SHORT).usage
    assert counted == used.input_tokens + used.cache_read_input_tokens


def test_errors_are_the_librarys_own(client, model):
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(model=model, messages=[], **SHORT)
    assert bad.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="no-such-model", messages=HELLO, **SHORT)
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(
            model=model, messages=[{"role": "user", "content": [image]}], **SHORT
        )


def test_the_async_client_does_the_same(url, client, model):
    async def ask() -> str:
        async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as many:
            stream = await many.messages.create(model=model, messages=HELLO, stream=True, **SHORT)
            deltas = [e.delta async for e in stream if e.type == "content_block_delta"]
            return "".join(delta.text for delta in deltas)

    plain = client.messages.create(model=model, messages=HELLO, **SHORT)
    assert asyncio.run(ask()) == plain.content[0].text


def test_a_tool_that_must_be_called_is_called(client, model):
    asked = {"model": model, "messages": HELLO, "tools": [TOOL], "max_tokens": 200}
    asked["extra_body"] = {"temperature": 0}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        found = client.messages.create(tool_choice=choice, **asked)
        call = found.content[-1]
        assert (call.type, call.name) == ("tool_use", "weather")
        assert isinstance(call.input["city"], str)
        assert found.stop_reason == "tool_use"
    with client.messages.stream(tool_choice={"type": "any"}, **asked) as stream:
        assert isinstance(stream.get_final_message().content[-1].input["city"], str)


def test_an_answer_keeps_to_a_schema(client, model):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    found = client.messages.create(
        model=model, messages=HELLO, max_tokens=30,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )  # fmt: skip
    assert json.loads(found.content[0].text)["colour"] in ("red", "green")
