"""Bodies of the Responses API become the same requests as chats."""

import pytest

from server.api.errors import ApiError
from server.api.openai_responses.body import ResponseBody
from server.api.openai_responses.translation import to_chat

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}


def chat(**fields) -> dict:
    body = ResponseBody.model_validate({"model": "m", **fields})
    return to_chat(body).model_dump(exclude_unset=True, by_alias=True)


def messages(**fields) -> list[dict]:
    return chat(**fields)["messages"]


def test_a_text_is_a_message_of_the_user():
    assert messages(input="hi", instructions="Be short.") == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "hi"},
    ]


def test_what_the_assistant_did_in_a_row_is_one_message():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "noon"}],
        },
        {"role": "developer", "content": "Be kind."},
    ]
    found = messages(input=items)
    assert found[0] == {"role": "user", "content": "Weather?"}
    assert found[1]["content"] == "I look."
    assert found[1]["reasoning_content"] == "Hm."
    calls = [(call["id"], call["function"]) for call in found[1]["tool_calls"]]
    assert calls == [
        ("c1", {"name": "f", "arguments": '{"a": 1}'}),
        ("c2", {"name": "g", "arguments": "{}"}),
    ]
    assert found[2:] == [
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
        {"role": "developer", "content": "Be kind."},
    ]


def test_parameters_keep_their_meaning():
    found = chat(
        input="hi",
        max_output_tokens=5,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stream=True,
        reasoning={"effort": "low"},
        include=["message.output_text.logprobs"],
        top_logprobs=3,
    )
    assert found["max_tokens"] == 5
    assert found["seed"] == 7
    assert (found["temperature"], found["top_p"], found["stream"]) == (0.5, 0.9, True)
    assert (found["logprobs"], found["top_logprobs"]) == (True, 3)
    assert found["reasoning_effort"] == "low"


def test_the_form_of_the_text_is_the_response_format():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    found = chat(input="hi", text={"format": form})["response_format"]
    assert found["type"] == "json_schema"
    assert found["json_schema"] == {"name": "n", "schema": schema, "strict": True}
    found = chat(input="hi", text={"format": {"type": "json_object"}})
    assert found["response_format"]["type"] == "json_object"
    assert "response_format" not in chat(input="hi", text={"format": {"type": "text"}})


def test_tools_are_functions_of_a_chat():
    found = chat(input="hi", tools=[FUNCTION], tool_choice={"type": "function", "name": "f"})
    (tool,) = found["tools"]
    assert tool["type"] == "function"
    assert tool["function"]["name"] == "f"
    assert found["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert chat(input="hi", tools=[FUNCTION], tool_choice="required")["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)
def test_what_needs_a_store_is_refused(fields, param):
    with pytest.raises(ApiError) as caught:
        chat(input="hi", **fields)
    assert caught.value.status == 400
    assert caught.value.param == param


def test_what_changes_nothing_is_accepted():
    chat(input="hi", store=True, metadata={"a": "b"}, user="me", truncation="disabled")
