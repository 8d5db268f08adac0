"""The API key and the size of bodies, around an application that only says yes."""

import asyncio

import httpx
import pytest

from server.api.access_control import AccessControl
from server.api.ingress import IngressMiddleware
from server.settings import Settings


async def yes(scope, receive, send):
    message = await receive()
    length = str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-length", length)]})
    await send({"type": "http.response.body", "body": b"yes"})


async def slow(scope, receive, send):
    await slow.wait()
    await yes(scope, receive, send)


def ask(
    path="/v1/models",
    key="secret",
    method="GET",
    host="0.0.0.0",
    allowed=(),
    draining=False,
    **more,
):
    async def go():
        app = IngressMiddleware(yes, 1000, AccessControl(key, host, allowed), lambda: draining)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **more)

    return asyncio.run(go())


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}]
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/generate", "/openapi.json", "/x"])
def test_everything_but_health_needs_the_key(path, headers):
    response = ask(path, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


def test_the_key_opens_and_health_is_public():
    assert ask(headers={"Authorization": "Bearer secret"}).status_code == 200
    assert ask("/health").status_code == 200
    assert ask(key=None).status_code == 200


@pytest.mark.parametrize(("size", "status"), [(0, 200), (1000, 200), (1001, 413), (10**6, 413)])
def test_bodies_up_to_the_limit_arrive_whole(size, status):
    response = ask(key=None, method="POST", content=b"x" * size)
    assert response.status_code == status
    if status == 200:
        assert response.headers["x-length"] == str(size)


def asked(called, **more):
    """The status for a request by a `Host` and maybe an `Origin`, without a key."""
    headers = {"Host": called, **more.pop("headers", {})}
    return ask(**{"key": None, "host": "127.0.0.1", "headers": headers, **more}).status_code


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/generate", "/trimtab/status"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_on_loopback_only_its_names_are_answered_to(path, method):
    for name in ("localhost", "127.0.0.1", "[::1]", "LocalHost:8000", "127.0.0.1:1", "[::1]:8000"):
        assert asked(name, path=path, method=method) == 200
    for name in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil",
                 "192.168.0.7", "[::2]", "evil@127.0.0.1", "127.0.0.1:x", "::1", "127.0.0.1:",
                 "\xe9"):  # fmt: skip
        assert asked(name.encode("latin-1"), path=path, method=method) == 403, name


@pytest.mark.parametrize("bound", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_every_loopback_address_is_loopback(bound):
    assert asked("evil.example", host=bound) == 403
    assert asked("localhost:8000", host=bound) == 200


def test_allowed_names_are_answered_to_and_then_no_others():
    allowed = ("models.example", "other.example:81")
    for more in ({}, {"host": "0.0.0.0"}):
        for name in ("models.example", "Models.example:9", "other.example:81"):
            assert asked(name, allowed=allowed, **more) == 200
        for name in ("other.example", "other.example:82", "evil.example"):
            assert asked(name, allowed=allowed, **more) == 403
    assert asked("localhost", allowed=allowed) == 200
    assert asked("localhost", allowed=allowed, host="0.0.0.0") == 403
    secret = {"Authorization": "Bearer secret"}
    assert asked("evil.example", allowed=allowed, key="secret", headers=secret) == 403


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
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
def test_pages_of_other_origins_are_refused(bound, origin, status):
    for method in ("POST", "GET", "OPTIONS"):
        found = asked(
            "localhost:8000", host=bound, allowed=("page.example", "localhost:8000"),
            headers={"Origin": origin}, method=method,
        )  # fmt: skip
        assert found == status


def test_with_a_key_pages_elsewhere_may_ask_who_know_it():
    headers = {"Origin": "http://page.example", "Authorization": "Bearer secret"}
    assert asked("models.example", key="secret", headers=headers) == 200
    assert asked("models.example", key="secret", headers={**headers, "Authorization": "x"}) == 401


@pytest.mark.parametrize("name", ["Host", "Authorization", "Origin"])
def test_headers_that_decide_come_once(name):
    value = {"Host": "localhost", "Authorization": "Bearer secret", "Origin": "http://localhost"}
    response = ask(host="127.0.0.1", headers=[*value.items(), (name, value[name])])
    assert response.status_code == 400
    assert ask(host="127.0.0.1", headers=value).status_code == 200


@pytest.mark.parametrize("given", [b"Bearer \xff\xfe", b"Bearer ", b"", b"Bearer secret2", b"\xff"])
def test_strange_keys_are_wrong_and_nothing_worse(given):
    assert ask(headers={b"Authorization": given}).status_code == 401


@pytest.mark.parametrize("key", ["", " ", "\t", " secret", "secret\n", "se\x00cret"])
def test_a_key_that_nobody_could_send_is_no_key(key, monkeypatch):
    with pytest.raises(ValueError, match="must not be empty"):
        Settings(api_key=key)
    monkeypatch.setenv("TRIMTAB_API_KEY", key.replace("\x00", "\x01"))
    with pytest.raises(ValueError, match="must not be empty"):
        Settings()


def test_while_draining_only_what_is_no_work_is_answered():
    for path, method in (("/health", "GET"), ("/generate", "POST"), ("/v1/completions", "POST")):
        response = ask(path, key=None, method=method, draining=True)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["message"] == "the server is shutting down"
    assert ask("/metrics", key=None, draining=True).status_code == 200


def test_bodies_together_are_bounded_and_forgotten():
    """So many at once that the last part of one is too much; then there is room again."""

    async def go():
        app = IngressMiddleware(slow, 1000, AccessControl(None, "0.0.0.0", ()), lambda: False)
        answered = asyncio.Event()
        slow.wait = answered.wait

        async def post(size):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.post("/generate", content=b"x" * size)

        first = [asyncio.create_task(post(1000)) for _ in range(64)]
        await asyncio.sleep(0.2)
        refused = await post(1)
        answered.set()
        found = await asyncio.gather(*first)
        return refused, found, await post(1000)

    refused, found, after = asyncio.run(go())
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert {response.status_code for response in found} == {200}
    assert after.status_code == 200
