"""One line for each request, as text and as JSON, and an id in every response."""

import asyncio
import json
import logging
from types import SimpleNamespace

import httpx
import pytest

from server.api.access_log import AccessLog
from server.api.answer_timing import AnswerTiming
from server.api.request_notes import client_id_of, notes_of
from server.engine.waiting_room import QueuePlace
from server.http.error_response import error_response
from server.log_format import JsonLines


def active_request() -> SimpleNamespace:
    """Stands in for a request of two answers that the engine has written."""
    return SimpleNamespace(
        timing=AnswerTiming(0.25, 0.5, 0.01, 0.1, 0.6),
        decision=SimpleNamespace(action=SimpleNamespace(variant="mix-80")),
        reader="full",
        prompt_tokens=31,
        generations=[SimpleNamespace(sequence=SimpleNamespace(output=[1] * n)) for n in (3, 4)],
    )


def ask(path="/v1/completions", status=200, own_id=None, active=None, lines=True, **headers):
    """Send one request; return the response and the notes on it."""
    seen = []

    async def answer(scope, receive, send):
        notes = notes_of(scope)
        notes.place, notes.active = QueuePlace(1, 10), active
        scope["state"]["client"] = "key-1"
        seen.append((notes, notes.place))
        fields = [] if own_id is None else [(b"X-Request-Id", own_id.encode())]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": b"ok"})

    async def send():
        transport = httpx.ASGITransport(app=AccessLog(answer, lines))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, headers=headers)

    response = asyncio.run(send())
    return response, *seen[0]


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "server.access")
    return caplog


def test_a_request_is_one_line_with_its_id_variant_and_times(lines):
    response, _, place = ask(own_id="cmpl-7", active=active_request())
    assert response.headers["x-request-id"] == "cmpl-7"
    assert place.given_up, "whatever happened to the request"
    (record,) = lines.records
    fields = record.fields
    assert fields.pop("ms") >= 0
    assert fields == {
        "method": "POST", "path": "/v1/completions", "status": 200, "client": "key-1",
        "address": "127.0.0.1", "variant": "mix-80", "read": "full", "prompt_tokens": 31,
        "output_tokens": 7, "queue_ms": 250.0, "ttft_ms": 500.0, "tpot_ms": 10.0, "id": "cmpl-7",
    }  # fmt: skip
    assert record.getMessage().startswith("POST /v1/completions 200 ms=")
    assert " variant=mix-80 " in record.getMessage()


def test_a_response_without_an_id_gets_that_of_the_client_or_a_new_one(lines):
    response, notes, _ = ask(status=404)
    assert response.headers["x-request-id"] == f"req-{notes.unique}"
    response, *_ = ask(status=500, **{"X-Request-Id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    assert [record.fields["id"] for record in lines.records] == [f"req-{notes.unique}", "mine"]


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_what_is_asked_every_second_is_a_line_only_if_it_fails(path, lines):
    ask(path)
    ask(path, status=503)
    assert not lines.records
    ask(path, status=401)
    assert len(lines.records) == 1


def test_the_lines_can_be_turned_off(lines):
    response, *_ = ask(lines=False)
    assert response.headers["x-request-id"]
    assert not lines.records


def test_a_request_whose_client_left_is_logged_as_cut(lines):
    async def leave(scope, receive, send):
        raise ConnectionError

    async def send():
        await AccessLog(leave, True)({"type": "http", "method": "GET", "path": "/\nx",
                                      "headers": [], "client": None}, None, None)  # fmt: skip

    with pytest.raises(ConnectionError):
        asyncio.run(send())
    (record,) = lines.records
    assert record.fields["status"] == 499
    assert record.fields["cut"]
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    ("value", "found"),
    [(b"mine-1", "mine-1"), (b"", None), (b"x" * 129, None), (b"a\x01b", None), (b"\xe4", None)],
)
def test_only_a_plain_short_id_of_a_client_is_taken(value, found):
    assert client_id_of([(b"host", b"x"), (b"X-Request-Id", value)]) == found
    head = error_response(431, "too large", [], None, [(b"x-request-id", value)])
    told = head.split(b"x-request-id: ")[1].split(b"\r\n")[0].decode()
    assert told == found if found else told.startswith("req-")


def test_a_json_log_has_an_object_in_each_line():
    record = logging.LogRecord("server.access", logging.INFO, "", 0, "%s\n%s", ("a", "b"), None)
    record.fields = {"id": "one", "status": 200}
    line = JsonLines().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "INFO", "logger": "server.access", "message": "a\nb", "id": "one", "status": 200,
    }  # fmt: skip
    try:
        raise ValueError("why")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: why" in json.loads(JsonLines().format(record))["error"]
