"""One HTTP/1.1 connection: uvicorn's protocol, with bounds on the size and time of requests."""

import asyncio
import logging
from asyncio import Transport
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HttpToolsProtocol,
    RequestResponseCycle,
)

from server.api.readiness import DRAINING
from server.http.connection_limiter import ConnectionLimiter
from server.http.error_response import ClosingTransport, RejectedError, error_response
from server.http.size_limits import SLICE_BYTES, MessageSizeLimits

log = logging.getLogger(__name__)

_MAX_PENDING = 64 * 2**10  # bytes of later requests that wait while one is being answered
_MAX_PIPELINED = 32  # requests in one slice


class HttpProtocol(HttpToolsProtocol):
    """Protects uvicorn's protocol against clients that send too much, or too slowly.

    Heads are bounded in size and time, bodies in time (`IngressMiddleware` bounds their size), and
    answers in the time that they may stay unread. While one request is answered, the following
    bytes of the connection wait unparsed. A client that disconnects cancels all requests of the
    connection; the end of its data counts as a disconnect, since the two look the same.
    """

    def __init__(self, limiter: ConnectionLimiter, **uvicorn: Any) -> None:  # noqa: ANN401
        super().__init__(**uvicorn)
        self._limiter = limiter
        self._timeouts = limiter.timeouts
        self.timeout_keep_alive = limiter.timeouts.idle  # type: ignore[assignment]
        self._pending = bytearray()  # received, not parsed yet
        self._ignoring_input = False  # whatever else comes is dropped
        self._ended = False  # the last response is written
        self._active: RequestResponseCycle | None = None
        self._sizes = MessageSizeLimits(in_head=False)
        self._messages = 0
        self._phase: tuple[str, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # What the transport calls.

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        count = len(self.connections)
        if self._limiter.make_room(count):
            self._watch()
        elif self._limiter.may_linger(count):
            self._refuse(503, "too many connections; try again later", retry_after=1)
        else:
            self._ignoring_input = self._ended = True
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._limiter.mark_busy(self)
        for cycle in (self._active, *(queued for queued, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                _drop(cycle)
        self.pipeline.clear()
        self._pending.clear()
        self._ignoring_input = self._ended = True
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ignoring_input:
            return
        self._pending += data
        if self._answering() and len(self._pending) > _MAX_PENDING:
            # If it were not read any more, a disconnect would go unnoticed.
            self.transport.abort()
            return
        self._parse()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._timeouts.unread, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # What the parser calls.

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise RejectedError(400, "too many requests before the first is answered")
        self._unset_keepalive_if_required()
        self._messages += 1
        self._sizes = MessageSizeLimits(in_head=True)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._sizes.field()
        if self._sizes.in_head:  # trailers, after a body, are dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._sizes.head(self.url, self.headers)
        if self.parser.get_method() == b"CONNECT":
            raise RejectedError(400, "this server is no proxy")
        if self.parser.should_upgrade():
            return  # parsed again without it, see `_head_without_upgrade`
        super().on_headers_complete()
        self.cycle.transport = ClosingTransport(self.transport, self._finish)  # type: ignore[assignment]
        if self.pipeline:
            self.flow.resume_reading()  # else a disconnect would go unnoticed

    def on_body(self, body: bytes) -> None:
        self._sizes.body(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # What the response calls.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self._ended:
            return
        super().on_response_complete()
        self._watch()
        if self._pending:
            self.loop.call_soon(self._parse)

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    # What the server calls when it ends.

    @property
    def busy(self) -> bool:
        """Whether a complete request is being answered."""
        return self._answering() and not self.transport.is_closing()

    def shutdown(self) -> None:
        """Close the connection. What is written already is still sent.

        A request that has begun, and whose response has not, is answered with an error first.
        """
        active = self._active
        if active is not None and active.response_complete:
            active = None
        begun = self._messages > 0 and self._current_phase() is not None and not self._ended
        if begun and (active is None or not active.response_started):
            if active is not None:
                _drop(active)
            self._write_refusal(503, DRAINING, retry_after=1)
        self._ignoring_input = self._ended = True
        self._close()

    # Parsing, and the time limits.

    def _answering(self) -> bool:
        """Whether a complete request is being answered, so that what follows are later requests."""
        cycle = self.cycle
        if self.pipeline:
            return True
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _parse(self) -> None:
        while self._pending and not self._ignoring_input and not self._answering():
            part = bytes(self._pending[:SLICE_BYTES])
            del self._pending[:SLICE_BYTES]
            try:
                self.parser.feed_data(part)
                self._sizes.parsed(len(part))
            except httptools.HttpParserUpgrade as upgrade:
                self._pending[:0] = self._head_without_upgrade() + part[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
            except (RejectedError, httptools.HttpParserError) as error:
                # The parser wraps errors of its callbacks.
                cause = error if isinstance(error, RejectedError) else error.__context__
                if isinstance(cause, RejectedError):
                    self._refuse(cause.status, cause.message)
                else:
                    self._refuse(400, "this is not a valid HTTP request")
        self._watch()

    def _head_without_upgrade(self) -> bytes:
        """Return the parsed head without its `Upgrade` field: no other protocol is supported.

        With the field, the parser would take the body for data of that protocol.
        """
        fields = (field for field in self.headers if field[0] != b"upgrade")
        lines = [b"%s: %s\r\n" % field for field in fields]
        start = b"%s %s HTTP/1.1\r\n" % (self.parser.get_method(), self.url)
        return start + b"".join(lines) + b"\r\n"

    def _watch(self) -> None:
        """Set the time limit for what the client must do next, if it has changed."""
        if self._ended:
            return
        phase = self._current_phase()
        if self._answering():
            self._limiter.mark_busy(self)
        else:
            self._limiter.mark_idle(self)
        if phase == self._phase:
            return
        self._phase = phase
        seconds = {"head": self._timeouts.header, "body": self._timeouts.body}
        self._set_timer(None if phase is None else seconds.get(phase[0]), self._on_timeout)

    def _current_phase(self) -> tuple[str, int] | None:
        """Return what is in progress, and in which message; None between messages."""
        if self._answering():
            return "answer", self._messages
        if self._sizes.in_head or not self._messages:
            return "head", max(1, self._messages)
        if self.cycle is not None and not self.cycle.response_complete:
            return "body", self._messages
        return None

    def _on_timeout(self) -> None:
        """Refuse a request that is not complete in time; close a connection without one."""
        if self._messages:
            what = "headers" if self._sizes.in_head else "body"
            self._refuse(408, f"the {what} of the request did not come in time")
        else:
            self.transport.abort()

    # Closing.

    def _refuse(self, status: int, message: str, retry_after: int | None = None) -> None:
        """Answer the request that is being read with an error, and close."""
        if retry_after is None:  # `ConnectionLimiter` logs refused connections
            log.info("%s: %d %s", self.client, status, message)
        self._ignoring_input = True
        self._pending.clear()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._answering() and not cycle.more_body:
                cycle.keep_alive = False  # close after the responses to the requests before
                return
            if cycle is not self._active or cycle.response_started:
                self.transport.abort()
                return
            _drop(cycle)
        self._write_refusal(status, message, retry_after)
        self._finish()

    def _write_refusal(self, status: int, message: str, retry_after: int | None) -> None:
        date, sent = self.server_state.default_headers, self.headers
        self.transport.write(error_response(status, message, date, retry_after, sent))

    def _finish(self) -> None:
        """Close when the client has read its response, or after a while.

        Closing while its bytes are unread would reset the connection, and the client might lose
        the response.
        """
        self._ignoring_input = self._ended = True
        self._pending.clear()
        self.pipeline.clear()
        self._limiter.mark_busy(self)
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.more_body and not self._sizes.in_head:
            self._close()
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_timer(self._timeouts.linger, self.transport.abort)

    def _close(self) -> None:
        self.transport.close()
        self._set_timer(self._timeouts.unread, self.transport.abort)

    def _set_timer(self, seconds: float | None, action: Callable[[], None]) -> None:
        """Replace the timer by one for `action`, or by none if `seconds` is None."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, action)


def _drop(cycle: RequestResponseCycle) -> None:
    """End a response as if its client had disconnected."""
    cycle.disconnected = True
    cycle.message_event.set()
