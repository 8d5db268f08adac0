"""Responses in JSON that are sent without a framework."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Send


async def send_json(
    send: "Send", status: int, body: Mapping[str, object], retry_after: int | None = None
) -> None:
    """Send a whole response, after which the connection is closed; `retry_after` is in seconds.

    One with status 401 says how a key is sent.
    """
    text = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    # The unread rest of a body must not be parsed as the next request.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


async def send_body(send: "Send", body: bytes, headers: Mapping[str, str]) -> None:
    """Send a whole response of status 200; its length is added to the headers."""
    fields = {**headers, "Content-Length": str(len(body))}
    pairs = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": 200, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
