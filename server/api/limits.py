"""What every request passes before its route: the size of its body and the API key."""

import hmac
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import envelope
from server.api.page import PUBLIC

_PUBLIC = {"/health", *PUBLIC}


class Limits:
    """ASGI middleware. A body is counted as it arrives, so that none is held that is too large."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, api_key: str | None) -> None:
        self._app = app
        self._max = max_body_bytes
        self._key = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 or 413 itself, else passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        public = scope["path"] in _PUBLIC
        if self._key is not None and not public and not hmac.compare_digest(given, self._key):
            await _answer(send, 401, "a valid API key is needed: Authorization: Bearer KEY")
            return
        try:
            body = await self._read(headers, receive)
        except ConnectionAbortedError:
            return
        if body is None:
            await _answer(send, 413, f"the body is larger than {self._max} bytes")
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        declared = headers.get(b"content-length", b"")
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


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps(envelope(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The rest of a body that was not read must not be taken for the next request.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
