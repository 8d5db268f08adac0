"""Values of a body keep their type, but whole numbers may have a point."""

import pytest
from pydantic import ValidationError

from server.api.chat.body import ChatBody
from server.api.schemas import CompletionBody


@pytest.mark.parametrize("prompt", [[5.0, 6], [[5.0], [6]], [5, 6]])
def test_whole_numbers_may_have_a_point(prompt):
    body = CompletionBody(prompt=prompt, max_tokens=3.0, temperature=1.0, seed=-4.0)
    assert (body.max_tokens, body.temperature, body.seed) == (3, 1.0, -4)
    assert body.prompt in ([5, 6], [[5], [6]])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", "3"),
        ("max_tokens", True),
        ("max_tokens", 3.5),
        ("temperature", "0.5"),
        ("stream", "true"),
        ("stream", 1),
        ("stream", 0.0),
        ("seed", 2.0**60),
        ("prompt", [5.5]),
        ("prompt", [True]),
        ("prompt", ["x", 5]),
        ("model", "x" * 513),
        ("stop", ""),
    ],
)
def test_no_value_is_taken_for_one_of_another_type(name, value):
    with pytest.raises(ValidationError):
        CompletionBody(**{"prompt": "x", name: value})


def test_what_is_inside_of_a_body_is_strict_too():
    with pytest.raises(ValidationError):
        ChatBody(messages=[{"role": "user", "content": [{"type": "text", "text": 5}]}])
    with pytest.raises(ValidationError):
        ChatBody(messages=[{"role": "user"}], stream_options={"include_usage": "yes"})
