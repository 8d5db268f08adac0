"""The size of bodies and the refusals at shutdown, around an app that answers every request."""

import asyncio

import httpx
import pytest

from server.api.access.control import AccessControl
from server.api.ingress import IngressMiddleware
from server.settings import Settings
from tests.support.ingress import answer_ok, send_request

OPEN = {"host": "0.0.0.0"}  # without a key


@pytest.mark.parametrize(("size", "status"), [(0, 200), (1000, 200), (1001, 413), (10**6, 413)])
def test_bodies_up_to_the_limit_arrive_whole(size, status):
    response = send_request(settings=OPEN, method="POST", content=b"x" * size)
    assert response.status_code == status
    if status == 200:
        assert response.headers["x-length"] == str(size)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_new_work_gets_503_while_draining(path):
    response = send_request(path, settings=OPEN, method="POST", draining=True)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["message"] == "the server is shutting down"


def test_metrics_are_answered_while_draining():
    assert send_request("/metrics", settings=OPEN, draining=True).status_code == 200


@pytest.mark.slow
def test_bodies_together_are_bounded_until_they_are_answered():
    """So many at once that the next byte is too much; then there is room again."""

    async def post_all():
        answering = asyncio.Event()

        async def answer_later(scope, receive, send):
            await answering.wait()
            await answer_ok(scope, receive, send)

        app = IngressMiddleware(answer_later, 1000, AccessControl(Settings(**OPEN)), lambda: False)

        async def post(size):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.post("/generate", content=b"x" * size)

        posts = [asyncio.create_task(post(1000)) for _ in range(64)]
        await asyncio.sleep(0.2)
        refused = await post(1)
        answering.set()
        answered = await asyncio.gather(*posts)
        return refused, answered, await post(1000)

    refused, answered, after = asyncio.run(post_all())
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert {response.status_code for response in answered} == {200}
    assert after.status_code == 200
