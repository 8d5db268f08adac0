"""API keys, host names and origins, around an application that answers every request."""

import pytest

from server.settings import Settings
from tests.support.ingress import send_request

SECRET = {"Authorization": "Bearer secret"}
ALLOWED = ("models.example", "other.example:81")


def status_for(host_header, *, listen="127.0.0.1", allowed=(), key=None, headers=(), **request):
    """Return the status for a request with a `Host` header to a server that listens somewhere."""
    headers = {"Host": host_header, **dict(headers)}
    return send_request(access=(key, listen, allowed), headers=headers, **request).status_code


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}]
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/generate", "/openapi.json", "/x"])
def test_everything_but_health_needs_the_key(path, headers):
    response = send_request(path, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


def test_the_key_lets_in_and_health_is_public():
    assert send_request(headers=SECRET).status_code == 200
    assert send_request("/health").status_code == 200
    assert send_request(access=(None, "0.0.0.0", ())).status_code == 200


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/generate", "/trimtab/status"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_the_host_is_checked_for_all_paths_and_methods(path, method):
    assert status_for("localhost", path=path, method=method) == 200
    assert status_for("evil.example", path=path, method=method) == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(name, 200) for name in ("localhost", "127.0.0.1", "[::1]", "LocalHost:8000")],
        *[(name, 200) for name in ("127.0.0.1:1", "[::1]:8000")],
        *[(name, 403) for name in ("evil.example", "evil.example:8000", "localhost.evil")],
        *[(name, 403) for name in ("127.0.0.1.evil.example", "192.168.0.7", "[::2]", "::1")],
        *[(name, 403) for name in ("evil@127.0.0.1", "127.0.0.1:x", "127.0.0.1:", "\xe9")],
    ],
)
def test_on_loopback_only_loopbacks_names_are_accepted(host, status):
    assert status_for(host.encode("latin-1")) == status


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_every_loopback_address_counts_as_loopback(listen):
    assert status_for("evil.example", listen=listen) == 403
    assert status_for("localhost:8000", listen=listen) == 200


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(name, 200) for name in ("models.example", "Models.example:9", "other.example:81")],
        *[(name, 403) for name in ("other.example", "other.example:82", "evil.example")],
    ],
)
def test_allowed_names_are_accepted_and_no_others(listen, host, status):
    assert status_for(host, listen=listen, allowed=ALLOWED) == status


@pytest.mark.parametrize(("listen", "status"), [("127.0.0.1", 200), ("0.0.0.0", 403)])
def test_besides_allowed_names_loopbacks_are_accepted_only_on_loopback(listen, status):
    assert status_for("localhost", listen=listen, allowed=ALLOWED) == status


def test_allowed_names_hold_with_a_key_too():
    assert status_for("evil.example", allowed=ALLOWED, key="secret", headers=SECRET) == 403


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("method", ["POST", "GET", "OPTIONS"])
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://LOCALHOST:8000", 200),
        ("http://page.example", 200),
        ("http://page.example:81", 200),
        ("http://127.0.0.1:8000", 403),
        ("http://localhost:3000", 403),
        ("http://localhost", 403),
        ("http://evil.example", 403),
        ("http://evil.example:8000", 403),
        ("null", 403),
        ("", 403),
        ("localhost:8000", 403),
        ("file://", 403),
    ],
)
def test_pages_of_other_origins_are_refused(listen, method, origin, status):
    status_of_page = status_for(
        "localhost:8000", listen=listen, allowed=("page.example", "localhost:8000"),
        headers={"Origin": origin}, method=method,
    )  # fmt: skip
    assert status_of_page == status


@pytest.mark.parametrize(("authorization", "status"), [("Bearer secret", 200), ("x", 401)])
def test_a_page_of_another_origin_is_let_in_by_the_key(authorization, status):
    headers = {"Origin": "http://page.example", "Authorization": authorization}
    assert status_for("models.example", key="secret", headers=headers) == status


@pytest.mark.parametrize("name", ["Host", "Authorization", "Origin"])
def test_a_checked_header_that_comes_twice_is_refused(name):
    access = ("secret", "127.0.0.1", ())
    once = {"Host": "localhost", **SECRET, "Origin": "http://localhost"}
    twice = [*once.items(), (name, once[name])]
    assert send_request(access=access, headers=twice).status_code == 400
    assert send_request(access=access, headers=once).status_code == 200


@pytest.mark.parametrize("key", [b"Bearer \xff\xfe", b"Bearer ", b"", b"Bearer secret2", b"\xff"])
def test_a_malformed_key_is_a_wrong_key(key):
    assert send_request(headers={b"Authorization": key}).status_code == 401


@pytest.mark.parametrize("key", ["", " ", "\t", " secret", "secret\n", "se\x00cret"])
def test_a_key_that_no_client_can_send_is_an_invalid_setting(key, monkeypatch):
    with pytest.raises(ValueError, match="must not be empty"):
        Settings(api_key=key)
    monkeypatch.setenv("TRIMTAB_API_KEY", key.replace("\x00", "\x01"))
    with pytest.raises(ValueError, match="must not be empty"):
        Settings()
