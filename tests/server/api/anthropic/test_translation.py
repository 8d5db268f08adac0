"""Bodies of Anthropic's API become the same requests as chats."""

import pytest

from server.api.anthropic.body import MessagesBody
from server.api.anthropic.translation import to_chat
from server.api.errors import ApiError

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}


def chat(**fields) -> dict:
    body = MessagesBody.model_validate(
        {"model": "m", "max_tokens": 8, "messages": [USER], **fields}
    )
    return to_chat(body).model_dump(exclude_unset=True, by_alias=True)


def test_a_conversation_with_tools_keeps_its_order():
    found = chat(
        system=[{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "zzz"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"city": "Århus"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "sun"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "content": [{"type": "text", "text": "noon"}],
                        "is_error": True,
                    },
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
    )["messages"]
    assert found[0] == {"role": "system", "content": "Be short."}
    assert found[1] == {"role": "user", "content": "Weather?"}
    assert found[2]["content"] == "I look."
    assert found[2]["reasoning_content"] == "Hm."
    (call,) = found[2]["tool_calls"]
    assert call["id"] == "t1"
    assert call["function"] == {"name": "f", "arguments": '{"city": "Århus"}'}
    assert found[3:] == [
        {"role": "tool", "tool_call_id": "t1", "content": "sun"},
        {"role": "tool", "tool_call_id": "t2", "content": "noon"},
        {"role": "user", "content": "And now?"},
    ]


def test_an_answer_that_is_begun_is_continued():
    begun = {"role": "assistant", "content": "The answer is ("}
    assert chat(messages=[USER, begun])["continue_final_message"] is True
    assert "continue_final_message" not in chat()


def test_parameters_keep_their_meaning():
    found = chat(stop_sequences=["a", "b"], temperature=0.5, top_k=4, top_p=0.9, stream=True)
    assert found["stop"] == ["a", "b"]
    assert (found["temperature"], found["top_k"], found["top_p"]) == (0.5, 4, 0.9)
    assert (found["stream"], found["max_tokens"]) == (True, 8)
    thinking = chat(thinking={"type": "enabled", "budget_tokens": 1024})
    assert thinking["chat_template_kwargs"] == {"enable_thinking": True}
    thinking = chat(thinking={"type": "disabled"})
    assert thinking["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tools_and_their_choice_are_those_of_a_chat(given, expected):
    found = chat(tools=[TOOL], tool_choice={**given, "disable_parallel_tool_use": True})
    assert found["tool_choice"] == expected
    assert found["parallel_tool_calls"] is False
    function = found["tools"][0]["function"]
    assert (function["name"], function["description"]) == ("f", "d")
    assert function["parameters"] == TOOL["input_schema"]


def test_a_schema_is_the_response_format():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    found = chat(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert found["response_format"]["type"] == "json_schema"
    assert found["response_format"]["json_schema"]["schema"] == schema


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]},
        {"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x"}]},
    ],
)
def test_blocks_of_the_other_role_are_refused(message):
    with pytest.raises(ApiError, match="message has no tool"):
        chat(messages=[message])


def test_a_named_tool_needs_its_name():
    with pytest.raises(ApiError, match="name is missing"):
        chat(tools=[TOOL], tool_choice={"type": "tool"})
