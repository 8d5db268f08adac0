"""The ingress middleware around an application that answers every request."""

import asyncio

import httpx

from server.api.access.control import AccessControl
from server.api.ingress import IngressMiddleware
from server.settings import Settings


async def answer_ok(scope, receive, send):
    """Answer with 200; headers say the length of the body, and who the client is."""
    message = await receive()
    length, client = str(len(message["body"])), scope["state"]["client"]
    headers = [(b"x-length", length.encode()), (b"x-client", client.encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


def send_request(path="/v1/models", *, method="GET", draining=False, settings=None, **request):
    """Return the response to one request to a server with some settings.

    Without, it listens on all addresses and has the key `secret`.
    """
    chosen = {"host": "0.0.0.0", "api_key": "secret"} if settings is None else settings

    async def send():
        access = AccessControl(Settings(**chosen))
        app = IngressMiddleware(answer_ok, 1000, access, lambda: draining)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())
