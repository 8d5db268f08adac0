"""What every request passes before its route: the door, the size of its body, the drain."""

import json
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.door import HEALTH, Door
from server.api.errors import envelope
from server.api.readiness import DRAINING


class Limits:
    """ASGI middleware. A body is counted as it arrives, so that none is held that is too large.

    While `draining()`, whatever would be new work is refused, and so is `/health`.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, door: Door, draining: Callable[[], bool]
    ) -> None:
        self._app = app
        self._max = max_body_bytes
        self._door = door
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a refusal itself, else passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._door.refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        try:
            body = await self._read(scope["headers"], receive)
        except ConnectionAbortedError:
            return
        if body is None:
            await _answer(send, 413, f"the body is larger than {self._max} bytes")
            return
        if self._draining() and (scope["method"] == "POST" or scope["path"] == HEALTH):
            await _answer(send, 503, DRAINING, retry_after=1)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes | None:
        declared = dict(headers).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max:
            return None
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


async def _answer(send: Send, status: int, message: str, retry_after: int | None = None) -> None:
    body = json.dumps(envelope(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    # The rest of a body that was not read must not be taken for the next request.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
