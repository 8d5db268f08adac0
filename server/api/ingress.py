"""The middleware before all routes: access control, the size of bodies, refusal at shutdown."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from server.api.access.control import AccessControl, Refusal
from server.api.error_envelope import error_body
from server.api.plain_response import send_json
from server.api.readiness import DRAINING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MAX_BODIES = 64  # bodies of the largest size that may be in memory at once


class IngressMiddleware:
    """ASGI middleware that refuses requests before their routes see them.

    Bodies are counted as they arrive, so that memory holds a bounded number of bytes. While
    `draining()`, new work gets 503.
    """

    def __init__(
        self,
        app: "ASGIApp",
        max_body_bytes: int,
        access: AccessControl,
        draining: Callable[[], bool],
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._access = access
        self._draining = draining
        self._body_bytes = 0  # of all requests that are read or answered

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer with a refusal, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._access.refuse_host(scope)
        if refusal is not None:
            await _refuse(send, scope, refusal.status, refusal.message)
        elif self._access.shares_with(scope):
            await _shared(self._admit)(scope, receive, send)
        else:
            await self._admit(scope, receive, send)

    async def _admit(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Refuse a request by its key or its body, or pass it on with the name of its client."""
        client = self._access.admit(scope)
        if isinstance(client, Refusal):
            await _refuse(send, scope, client.status, client.message)
            return
        scope.setdefault("state", {})["client"] = client
        body = bytearray()
        try:
            await self._read(scope["headers"], receive, body)
            if self._draining() and scope["method"] == "POST":
                raise _RequestRefusedError(503, DRAINING, retry_after=1)
            await self._app(scope, _replayed(bytes(body), receive), send)
        except _RequestRefusedError as error:
            await _refuse(send, scope, error.status, error.message, error.retry_after)
        except _DisconnectedError:
            pass
        finally:
            self._body_bytes -= len(body)

    async def _read(
        self, headers: list[tuple[bytes, bytes]], receive: "Receive", body: bytearray
    ) -> None:
        """Fill `body`. Raise `_RequestRefusedError` if it or all bodies together are too large."""
        too_large = _RequestRefusedError(
            413, f"the body is larger than {self._max_body_bytes} bytes"
        )
        declared = dict(headers).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise too_large
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _DisconnectedError
            part = message.get("body", b"")
            body += part
            self._body_bytes += len(part)
            if len(body) > self._max_body_bytes:
                raise too_large
            if self._body_bytes > _MAX_BODIES * self._max_body_bytes:
                raise _RequestRefusedError(503, "too many large bodies at once", retry_after=1)
            more = message.get("more_body", False)


class _RequestRefusedError(Exception):
    """A request gets this status and message instead of an answer."""

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class _DisconnectedError(Exception):
    """The client disconnected before its body had arrived."""


def _shared(app: "ASGIApp") -> "ASGIApp":
    """Return an application that tells the browser of a page of any origin to share its answers.

    Browsers ask first (preflight), without the key, and are told that they may send it. Cookies
    are not used, so that nothing is sent that the page does not have itself.
    """
    from starlette.middleware.cors import CORSMiddleware

    any_of = ("*",)
    return CORSMiddleware(
        app,
        allow_origin_regex=".*",
        allow_methods=any_of,
        allow_headers=any_of,
        expose_headers=any_of,
        allow_private_network=True,
    )


def _replayed(body: bytes, receive: "Receive") -> "Receive":
    """Return a function that gives the body in one message, then what `receive` gives."""
    replayed = False

    async def replay() -> "Message":
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(
    send: "Send", scope: "Scope", status: int, message: str, retry_after: int | None = None
) -> None:
    await send_json(send, status, error_body(scope["path"], status, message), retry_after)
