"""Host names and origins, around an application that answers every request."""

import pytest

from server.settings import Settings
from tests.support.ingress import send_request

SECRET = {"Authorization": "Bearer secret"}
ALLOWED = ("models.example", "other.example:81")


def status_for(host_header, *, listen="127.0.0.1", allowed=(), key=(), headers=(), **request):
    """Return the status for a request with a `Host` header to a server that listens somewhere."""
    headers = {"Host": host_header, **dict(headers)}
    settings = {"host": listen, "allowed_hosts": allowed, "api_key": key}
    return send_request(settings=settings, headers=headers, **request).status_code


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


@pytest.mark.parametrize("name", ["Host", "Authorization", "X-Api-Key", "Origin"])
def test_a_checked_header_that_comes_twice_is_refused(name):
    settings = {"host": "127.0.0.1", "api_key": "secret"}
    once = {"Host": "localhost", **SECRET, "X-Api-Key": "secret", "Origin": "http://localhost"}
    twice = [*once.items(), (name, once[name])]
    assert send_request(settings=settings, headers=twice).status_code == 400
    assert send_request(settings=settings, headers=once).status_code == 200


PAGE = "https://chat.example"
CORS = {"host": "127.0.0.1", "cors_origins": PAGE}
ASK = {
    "Host": "localhost",
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


def cors_of(response):
    """Return what a browser is told of sharing, by the rest of the header's name."""
    start = "access-control-allow-"
    return {k.removeprefix(start): v for k, v in response.headers.items() if k.startswith(start)}


@pytest.mark.parametrize("key", [(), "secret"])
def test_a_listed_page_may_ask_and_read(key):
    settings = {**CORS, "api_key": key}
    preflight = send_request(settings=settings, method="OPTIONS", headers=ASK)
    assert preflight.status_code == 200
    told = cors_of(preflight)
    assert told["origin"] == PAGE
    assert "POST" in told["methods"]
    assert told["headers"] == ASK["Access-Control-Request-Headers"]
    assert "credentials" not in told
    sent = {"Host": "localhost", "Origin": PAGE, **SECRET}
    answer = send_request(settings=settings, method="POST", headers=sent)
    assert (answer.status_code, cors_of(answer)) == (200, {"origin": PAGE})
    assert answer.headers["vary"] == "Origin"


def test_a_listed_page_can_read_why_it_is_refused():
    refused = send_request(
        settings={**CORS, "api_key": "secret"}, headers={"Host": "localhost", "Origin": PAGE}
    )
    assert (refused.status_code, cors_of(refused)) == (401, {"origin": PAGE})


@pytest.mark.parametrize("origin", ["https://evil.example", PAGE + ".evil.example", "null"])
@pytest.mark.parametrize(("key", "status"), [((), 403), ("secret", 401)])
def test_other_pages_get_no_preflight_and_no_answer(origin, key, status):
    settings = {**CORS, "api_key": key}
    preflight = send_request(settings=settings, method="OPTIONS", headers={**ASK, "Origin": origin})
    assert (preflight.status_code, cors_of(preflight)) == (status, {})


def test_without_a_list_nothing_is_shared():
    settings = {"host": "127.0.0.1", "api_key": "secret"}
    sent = {"Host": "localhost", "Origin": PAGE, **SECRET}
    assert cors_of(send_request(settings=settings, headers=sent)) == {}
    preflight = send_request(settings=settings, headers=ASK, method="OPTIONS")
    assert (preflight.status_code, cors_of(preflight)) == (401, {})


def test_a_listed_page_does_not_open_other_host_names():
    sent = {**ASK, "Host": "evil.example"}
    assert send_request(settings=CORS, method="OPTIONS", headers=sent).status_code == 403


@pytest.mark.parametrize("origins", ["chat.example", "https://", "https://a/b", "a b", ",", "://x"])
def test_what_is_no_origin_is_an_invalid_setting(origins):
    with pytest.raises(ValueError, match="expected origins such as"):
        Settings(cors_origins=origins)


def test_any_origin_needs_a_key():
    with pytest.raises(ValueError, match="needs an API key"):
        Settings(cors_origins="*")
    sent = {"Host": "localhost", "Origin": "https://evil.example", **SECRET}
    settings = {"host": "127.0.0.1", "cors_origins": "*", "api_key": "secret"}
    assert send_request(settings=settings, headers=sent).status_code == 200
