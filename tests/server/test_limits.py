"""The API key and the size of bodies, around an application that only says yes."""

import asyncio

import httpx
import pytest

from server.api.limits import Limits


async def yes(scope, receive, send):
    message = await receive()
    length = str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-length", length)]})
    await send({"type": "http.response.body", "body": b"yes"})


def ask(path="/v1/models", key="secret", method="GET", **more):
    async def go():
        app = Limits(yes, max_body_bytes=1000, api_key=key)
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
