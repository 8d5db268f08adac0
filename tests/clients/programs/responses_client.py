"""The Responses API by OpenAI's own library: whole, streamed, with tools, and stateless."""

import asyncio
import json
from typing import Literal

import openai
import pydantic
import pytest

SHORT = {"max_output_tokens": 16, "temperature": 0}
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def test_a_text_is_answered(client, model):
    found = client.responses.create(
        model=model, input="Name three colours.", instructions="Be brief.", **SHORT
    )
    assert found.output_text
    assert found.status in ("completed", "incomplete")
    assert 0 < found.usage.output_tokens <= 16
    assert found.store is False


def test_the_answer_is_that_of_a_chat(client, model):
    messages = [{"role": "user", "content": "Name three colours."}]
    chat = client.chat.completions.create(
        model=model, messages=messages, max_tokens=16, temperature=0
    )
    found = client.responses.create(model=model, input=messages, **SHORT)
    assert found.output_text == chat.choices[0].message.content


def test_a_stream_has_the_text_of_the_plain_response(client, model):
    plain = client.responses.create(model=model, input="Name three colours.", **SHORT)
    with client.responses.stream(model=model, input="Name three colours.", **SHORT) as stream:
        text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    assert text == plain.output_text
    events = list(
        client.responses.create(model=model, input="Name three colours.", stream=True, **SHORT)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == f"response.{plain.status}"
    assert events[-1].response.output_text == plain.output_text
    assert events[-1].response.usage.output_tokens == plain.usage.output_tokens


def test_a_conversation_is_sent_whole(client, model):
    first = client.responses.create(model=model, input="Name three colours.", **SHORT)
    again = [{"role": "user", "content": "Name three colours."}, *first.output]
    again.append({"role": "user", "content": "And one more?"})
    found = client.responses.create(model=model, input=again, **SHORT)
    assert found.usage.input_tokens > first.usage.input_tokens
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=model, input="More.", previous_response_id=first.id)
    assert refused.value.param == "previous_response_id"


def test_tools_and_their_results_stand_in_the_history(client, model):
    history = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "weather",
            "arguments": '{"city": "Paris"}',
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "Sunny."},
    ]
    found = client.responses.create(model=model, input=history, tools=[TOOL], **SHORT)
    assert found.output


def test_log_probabilities_come_with_the_text(client, model):
    found = client.responses.create(
        model=model,
        input="Name three colours.",
        include=["message.output_text.logprobs"],
        top_logprobs=2,
        **SHORT,
    )
    part = found.output[0].content[0]
    assert len(part.logprobs) >= found.usage.output_tokens - 1
    assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


def test_the_async_client_does_the_same(url, client, model):
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as many:
            stream = await many.responses.create(
                model=model, input="Name three colours.", stream=True, **SHORT
            )
            return "".join([e.delta async for e in stream if e.type.endswith("text.delta")])

    plain = client.responses.create(model=model, input="Name three colours.", **SHORT)
    assert asyncio.run(ask()) == plain.output_text


def test_a_tool_that_must_be_called_is_called(client, model):
    asked = {"model": model, "input": "How is the weather in Paris?", "tools": [TOOL]}
    for choice in ("required", {"type": "function", "name": "weather"}):
        found = client.responses.create(
            tool_choice=choice, max_output_tokens=200, temperature=0, **asked
        )
        call = found.output[-1]
        assert (call.type, call.name) == ("function_call", "weather")
        assert isinstance(json.loads(call.arguments)["city"], str)
    with client.responses.stream(
        tool_choice="required", max_output_tokens=200, temperature=0, **asked
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds
    assert isinstance(json.loads(final.output[-1].arguments)["city"], str)


class Colour(pydantic.BaseModel):
    colour: Literal["red", "green"]


def test_an_answer_is_parsed(client, model):
    found = client.responses.parse(
        model=model, input="Name a colour.", text_format=Colour, max_output_tokens=30
    )
    assert found.output_parsed.colour in ("red", "green")
