"""Routes by their other names, HEAD, and what the server tells of itself."""

import httpx
import pytest

from server.api.error_envelope import error_body
from tests.support.tiny import CHAT


@pytest.fixture
def client(tiny_server):
    with httpx.Client(base_url=tiny_server.url, timeout=30) as client:
        yield client


def test_the_server_is_described_as_others_describe_themselves(client):
    assert client.get("/version").json()["version"]
    assert client.get("/load").json() == {"server_load": 0}
    props = client.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert props["chat_template"] == CHAT
    assert props["total_slots"] == 16


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_routes_answer_without_their_version(client, path):
    other, usual = client.post(path, json={}), client.post(f"/v1{path}", json={})
    assert other.status_code == usual.status_code == 400
    assert other.json() == usual.json()


def test_models_are_listed_without_the_version(client):
    listed = client.get("/models").json()["data"]
    assert [one["id"] for one in listed] == [
        one["id"] for one in client.get("/v1/models").json()["data"]
    ]
    assert client.get(f"/models/{listed[0]['id']}").json()["id"] == listed[0]["id"]
    assert client.get("/models/other").status_code == 404


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/version", "/metrics"])
def test_head_answers_as_get_without_a_body(client, path):
    head, got = client.head(path), client.get(path)
    assert head.status_code == got.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == got.headers["content-type"]
    assert client.head("/v1/completions").status_code == 405


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"type": "error", "error": {"type": "not_found_error"}}),
        ("/v1/messages/x", {"type": "error", "error": {"type": "not_found_error"}}),
        ("/api/x", {"error": "GET /api/x: Not Found"}),
        ("/x", {"error": {"type": "not_found_error", "param": None, "code": None}}),
    ],
)
def test_errors_have_the_shape_of_the_paths_api(path, body):
    found = error_body(path, 404, f"GET {path}: Not Found")
    if isinstance(body["error"], dict):
        body["error"]["message"] = f"GET {path}: Not Found"
    assert found == body
