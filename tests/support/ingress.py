"""The ingress middleware around an application that answers every request."""

import asyncio

import httpx

from server.api.access_control import AccessControl
from server.api.ingress import IngressMiddleware


async def answer_ok(scope, receive, send):
    """Answer with 200, and with the length of the body in the header `x-length`."""
    message = await receive()
    length = str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-length", length)]})
    await send({"type": "http.response.body", "body": b"ok"})


def send_request(
    path="/v1/models", *, access=("secret", "0.0.0.0", ()), method="GET", draining=False, **request
):
    """Return the response to one request. `access` are the arguments of `AccessControl`."""

    async def send():
        app = IngressMiddleware(answer_ok, 1000, AccessControl(*access), lambda: draining)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())
