"""One line in the log for each HTTP request, and the request's id in every response."""

import logging
import time
from typing import TYPE_CHECKING

from server.api.error_envelope import one_line
from server.api.request_notes import ID_HEADER, RequestNotes, notes_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("server.access")

_QUIET_PATHS = ("/health", "/metrics")  # asked every few seconds
_CLIENT_LEFT = 499


class AccessLog:
    """ASGI middleware around everything else.

    With `lines`, each request is logged at its end: who, what, the status, the times, and for
    answers of the model the variant and the tokens. A JSON log has them as fields.
    """

    def __init__(self, app: "ASGIApp", lines: bool) -> None:
        self._app = app
        self._lines = lines

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on, and give the response an id if it has none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes, path = notes_of(scope), scope["path"]
        status, told_id, whole = _CLIENT_LEFT, notes.request_id("req"), False

        async def send_with_id(message: "Message") -> None:
            nonlocal status, told_id, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                own = [value for name, value in headers if name.lower() == ID_HEADER]
                told_id = own[0].decode("latin-1") if own else told_id
                if not own:
                    headers.append((ID_HEADER, told_id.encode("latin-1")))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            notes.give_up_place()
            if self._lines:
                level = logging.INFO
                if path in _QUIET_PATHS and status in (200, 503):
                    level = logging.DEBUG
                if log.isEnabledFor(level):
                    fields = _fields(scope, notes, status, whole)
                    fields["id"] = told_id
                    log.log(level, _text(fields), extra={"fields": fields})


def _fields(
    scope: "Scope", notes: RequestNotes, status: int, whole: bool
) -> dict[str, str | int | float]:
    """Return what is logged of a request. Times are in milliseconds."""
    peer = scope.get("client")
    fields: dict[str, str | int | float] = {
        "method": one_line(scope["method"]),
        "path": one_line(scope["path"]),
        "status": status,
        "ms": round(1e3 * (time.monotonic() - notes.arrived), 1),
        "client": scope["state"].get("client", "-"),
        "address": peer[0] if peer else "-",
    }
    if not whole:
        fields["cut"] = "the response did not reach its end"
    active = notes.active
    if active is not None and active.generations:
        timing = active.timing
        fields |= {
            "variant": active.decision.action.variant,
            "read": active.reader,
            "prompt_tokens": active.prompt_tokens,
            "output_tokens": sum(len(g.sequence.output) for g in active.generations),
        }
        times = {"queue_ms": timing.waited, "ttft_ms": timing.ttft, "tpot_ms": timing.tpot}
        fields |= {name: round(1e3 * s, 2) for name, s in times.items() if s is not None}
    return fields


def _text(fields: dict[str, str | int | float]) -> str:
    """Return the fields as one line."""
    rest = " ".join(f"{n}={v}" for n, v in fields.items() if n not in ("method", "path", "status"))
    return f"{fields['method']} {fields['path']} {fields['status']} {rest}"
