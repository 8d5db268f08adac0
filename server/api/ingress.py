"""What every request passes before its route: the door, the size of its body, the drain."""

import json
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.access_control import HEALTH, AccessControl
from server.api.errors import envelope
from server.api.readiness import DRAINING

_WHOLE_BODIES = 64  # of the largest size, that may be in memory at once


class IngressMiddleware:
    """ASGI middleware. Bodies are counted as they arrive, so that memory holds a bounded number.

    While `draining()`, whatever would be new work is refused, and so is `/health`.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, access: AccessControl, draining: Callable[[], bool]
    ) -> None:
        self._app = app
        self._max = max_body_bytes
        self._access = access
        self._draining = draining
        self._held = 0  # bytes of the bodies of all requests that are read or answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a refusal itself, else passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._access.refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        body = bytearray()
        try:
            await self._read(scope["headers"], receive, body)
            if self._draining() and (scope["method"] == "POST" or scope["path"] == HEALTH):
                raise _RefusedError(503, DRAINING, retry_after=1)
            await self._app(scope, _replayed(bytes(body), receive), send)
        except _RefusedError as error:
            await _answer(send, error.status, error.message, error.retry_after)
        except _GoneError:
            pass
        finally:
            self._held -= len(body)

    async def _read(
        self, headers: list[tuple[bytes, bytes]], receive: Receive, body: bytearray
    ) -> None:
        """Fill `body`. Raise `_RefusedError` if it is too large, alone or with all others."""
        too_large = _RefusedError(413, f"the body is larger than {self._max} bytes")
        declared = dict(headers).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max:
            raise too_large
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            part = message.get("body", b"")
            body += part
            self._held += len(part)
            if len(body) > self._max:
                raise too_large
            if self._held > _WHOLE_BODIES * self._max:
                raise _RefusedError(503, "too many large bodies at once", retry_after=1)
            more = message.get("more_body", False)


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class _GoneError(Exception):
    """The client hung up before its body was there."""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Give the body in one message, then what `receive` gives."""
    replayed = False

    async def replay() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(send: Send, status: int, message: str, retry_after: int | None = None) -> None:
    body = json.dumps(envelope(status, message)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    # The rest of a body that was not read must not be taken for the next request.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
