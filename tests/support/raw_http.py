"""Raw connections to `HttpProtocol`, around an application that only waits."""

import asyncio
import contextlib
import functools
import json
import socket
import threading
import time
from dataclasses import replace

import uvicorn

from server.http.connection_limiter import ClientTimeouts, ConnectionLimiter
from server.http.protocol import HttpProtocol

TIMEOUTS = ClientTimeouts(header=10, body=10)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class WaitingApp:
    """Reads the body, and waits for the time in the path `/SECONDS` or for a disconnect.

    `running` counts requests; `ended` tells of each whether its client was gone.
    """

    def __init__(self):
        self.running = 0
        self.ended = []

    async def __call__(self, scope, receive, send):
        self.running += 1
        try:
            await self.answer(scope, receive, send)
        finally:
            self.running -= 1

    async def answer(self, scope, receive, send):
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ended.append("gone")
                return
            size += len(message["body"])
            more = message["more_body"]
        gone = asyncio.create_task(receive())
        await asyncio.wait({gone}, timeout=float(scope["path"].strip("/") or 0))
        self.ended.append("gone" if gone.done() else "done")
        gone.cancel()
        body = str(size).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def serving(max_connections=100, **timeouts):
    app = WaitingApp()
    connections = ConnectionLimiter(max_connections, replace(TIMEOUTS, **timeouts))
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, http=functools.partial(HttpProtocol, connections), ws="none",
            log_config=None, lifespan="off", access_log=False,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    app.port = server.servers[0].sockets[0].getsockname()[1]
    app.open = server.server_state.connections
    yield app
    server.should_exit = server.force_exit = True
    thread.join(timeout=5)


def connect(app, *parts):
    client = socket.create_connection(("127.0.0.1", app.port), timeout=10)
    with contextlib.suppress(OSError):
        for part in parts:
            client.sendall(part)
    return client


def read(client):
    """Return all that comes until the server closes."""
    received = b""
    while part := client.recv(65536):
        received += part
    client.close()
    return received


def status_of_error(answer):
    """Return the status of an error in the envelope, which closes the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body)["error"]["message"]
    assert b"connection: close" in head.lower()
    return int(head.split()[1])


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


def closing(request):
    """Return the request with a field that makes the server close after it."""
    return request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
