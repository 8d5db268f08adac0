"""Bodies of Ollama's API become the same requests as chats."""

import pytest

from server.api.errors import ApiError
from server.api.ollama.body import OllamaChatBody, OllamaGenerateBody
from server.api.ollama.translation import chat_to_chat, generate_to_chat

USER = {"role": "user", "content": "hi"}


def chat(**fields) -> dict:
    body = OllamaChatBody.model_validate({"model": "m", "messages": [USER], **fields})
    return chat_to_chat(body, "m").model_dump(exclude_unset=True, by_alias=True)


def test_options_keep_their_meaning():
    found = chat(
        options={
            **{"temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "seed": 7},
            **{"repeat_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.2},
            **{"num_predict": 5, "stop": ["a"], "num_ctx": 4096, "num_thread": 2, "mirostat": 0},
        }
    )
    expected = {"temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1, "seed": 7}
    expected |= {"repetition_penalty": 1.2, "presence_penalty": 0.1, "frequency_penalty": 0.2}
    expected |= {"max_tokens": 5, "stop": ["a"], "model": "m", "messages": [USER]}
    assert found == expected


@pytest.mark.parametrize("number", [-1, -2])
def test_a_negative_bound_is_none(number):
    assert "max_tokens" not in chat(options={"num_predict": number})


@pytest.mark.parametrize(
    "options",
    [{"mirostat": 1}, {"typical_p": 0.7}, {"repeat_last_n": 64}, {"nonsense": 1}, {"top_p": "x"}],
)
def test_options_that_would_be_ignored_are_refused(options):
    with pytest.raises(ApiError) as caught:
        chat(options=options)
    assert caught.value.status == 400


def test_calls_and_results_get_ids_in_order():
    calls = [{"function": {"name": name, "arguments": {"a": name}}} for name in ("f", "g")]
    found = chat(
        messages=[
            USER,
            {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": calls},
            {"role": "tool", "tool_name": "f", "content": "1"},
            {"role": "tool", "tool_name": "g", "content": "2"},
        ]
    )["messages"]
    assert found[1]["reasoning_content"] == "Hm."
    ids = [call["id"] for call in found[1]["tool_calls"]]
    assert len(set(ids)) == 2
    assert [m["tool_call_id"] for m in found[2:]] == ids
    assert found[1]["tool_calls"][1]["function"] == {"name": "g", "arguments": '{"a": "g"}'}


def test_a_format_is_the_response_format():
    assert chat(format="json")["response_format"]["type"] == "json_object"
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    found = chat(format=schema)["response_format"]
    assert found["type"] == "json_schema"
    assert found["json_schema"]["schema"] == schema
    assert "response_format" not in chat(format="")


def test_thinking_is_a_variable_of_the_template():
    assert chat(think=False)["chat_template_kwargs"] == {"enable_thinking": False}
    assert chat(think="high")["reasoning_effort"] == "high"


def generate(**fields) -> dict:
    body = OllamaGenerateBody.model_validate({"model": "m", "prompt": "hi", **fields})
    return generate_to_chat(body, "m").model_dump(exclude_unset=True, by_alias=True)


def test_a_prompt_is_a_message():
    assert generate(system="Be short.")["messages"] == [
        {"role": "system", "content": "Be short."},
        USER,
    ]


@pytest.mark.parametrize(
    "fields",
    [{"suffix": "x"}, {"template": "{{ .Prompt }}"}, {"raw": True, "system": "x"}],
)
def test_what_would_be_ignored_is_refused(fields):
    with pytest.raises(ApiError):
        generate(**fields)
