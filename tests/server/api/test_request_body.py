"""A body is counted before it is parsed, and is JSON of the strict kind."""

import json
import time

import pytest

from server.api.error_envelope import envelope
from server.api.errors import ApiError
from server.api.request_body import MAX_CONTAINERS, MAX_STRINGS, MAX_VALUES, parse


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "plain"},
        {"prompt": 'he said "x", \\"y\\", [1, {2}]\n' * 3000},
        {"prompt": '"' * 100_000 + "," * 100_000 + "[" * 100_000},
        {"prompt": '\\",' * 60_000 + "\\"},
        {"prompt": "é日😀" * 1000},
        {"prompt": [7] * 250_000},
        {"prompt": [[7, 8]] * 30_000},
        {"messages": [{"role": "user", "content": "x, y"}] * 4096},
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_may_come_comes_through(value, ascii_only):
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt":[' + ",".join(['""'] * 1_000_000) + "]}",
        json.dumps([""] * (MAX_STRINGS + 1)),
        json.dumps([[]] * (MAX_CONTAINERS + 1)),
        json.dumps([{}] * (MAX_CONTAINERS + 1)),
        json.dumps([1] * (MAX_VALUES + 1)),
        "[" * 2_000_000,
        json.dumps({f"{at}": at for at in range(MAX_STRINGS + 1)}),
        '["\\"' + '","' * 700_000 + '"]',
    ],
)
def test_too_many_values_are_refused_before_they_are_parsed(text, monkeypatch):
    monkeypatch.setattr("pydantic_core.from_json", lambda *_, **__: pytest.fail("parsed"))
    began = time.monotonic()
    with pytest.raises(ApiError, match="holds more than") as raised:
        parse(text.encode())
    assert raised.value.status == 400
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "body",
    [
        b'"\\ud800"',
        b'{"\\udc00": 1}',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1" * 5000,
        b"[" * 900 + b"]" * 900,
        b"{'a': 1}",
        b"",
        b"\x00",
        b"[1,]",
        b"1 2",
    ],
)
def test_what_is_no_json_is_refused(body):
    with pytest.raises(ApiError, match="not valid JSON") as raised:
        parse(body)
    assert raised.value.status == 400


def test_messages_can_always_be_sent_and_are_short():
    made = envelope(400, "no model '\ud800\n\x1b[31m" + "x" * 10**6, "trimtab.\udfff")["error"]
    assert json.loads(json.dumps(made, ensure_ascii=False).encode()) == made
    assert len(made["message"]) <= 600
    assert made["message"].startswith(r"no model '\ud800 \x1b[31mxx")
    assert made["param"] == r"trimtab.\udfff"
