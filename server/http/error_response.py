"""Error responses that the connection writes itself, before or instead of the application."""

import json
from asyncio import Transport
from collections.abc import Callable, Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from server.api.error_envelope import envelope
from server.api.request_notes import ID_HEADER, RequestNotes, client_id_of


class RejectedError(Exception):
    """A request is rejected and not read any further; `status` is that of the response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def error_response(
    status: int,
    message: str,
    headers: Iterable[tuple[bytes, bytes]],
    retry_after: int | None,
    sent: Iterable[tuple[bytes, bytes]] | None,
) -> bytes:
    """Return a whole response with the error envelope, after which the connection is closed.

    It has the request's id, by its header among those that were `sent`, or a new one.
    """
    request_id = RequestNotes(client_id_of(sent or ())).request_id("req")
    body = json.dumps(envelope(status, message)).encode()
    fields = [
        *headers,
        (ID_HEADER, request_id.encode()),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    if retry_after is not None:
        fields.append((b"retry-after", b"%d" % retry_after))
    return (
        STATUS_LINE[status] + b"".join(b"%s: %s\r\n" % field for field in fields) + b"\r\n" + body
    )


class ClosingTransport:
    """A transport for writing a response, whose `close` is that of its connection."""

    def __init__(self, transport: Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close
