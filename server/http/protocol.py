"""One HTTP/1.1 connection: uvicorn's protocol, with limits on what a client may send and when."""

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
from server.http.connections import ConnectionLimiter
from server.http.error_response import ClosingTransport, RejectedError, error_response
from server.http.size_limits import SLICE, MessageSizeLimits

log = logging.getLogger(__name__)

_AHEAD = 64 * 2**10  # bytes kept of later requests while one is being answered
_PIPELINED = 32  # requests in one slice


class HttpProtocol(HttpToolsProtocol):
    """Adds to uvicorn's protocol what a server that is open to strangers needs.

    Heads are bounded in size and time, bodies in time (`IngressMiddleware` bounds their size), and
    answers in the time that they may stay unread. While one request is answered, the following
    bytes of the connection wait unparsed. A client that disconnects cancels all requests of the
    connection; the end of its data counts as a disconnect, since the two look the same.
    """

    def __init__(self, connections: ConnectionLimiter, **uvicorn: Any) -> None:  # noqa: ANN401
        super().__init__(**uvicorn)
        self._all = connections
        self._patience = connections.patience
        self.timeout_keep_alive = connections.patience.idle  # type: ignore[assignment]
        self._pending = bytearray()  # received, not parsed yet
        self._deaf = False  # whatever else comes is thrown away
        self._ended = False  # the last answer is written
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
        if self._all.make_room(count):
            self._watch()
        elif self._all.may_linger(count):
            self._refuse(503, "too many connections; try again later", retry_after=1)
        else:
            self._deaf = self._ended = True
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.works(self)
        for cycle in (self._active, *(queued for queued, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                _drop(cycle)
        self.pipeline.clear()
        self._pending.clear()
        self._deaf = self._ended = True
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._pending += data
        if self._ahead() and len(self._pending) > _AHEAD:
            # Not read any more it could not be seen to hang up.
            self.transport.abort()
            return
        self._parse()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._patience.unread, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # What the parser calls.

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= _PIPELINED:
            raise RejectedError(400, "too many requests before the first is answered")
        self._unset_keepalive_if_required()
        self._messages += 1
        self._sizes = MessageSizeLimits(in_head=True)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._sizes.field()
        if self._sizes.in_head:  # those after a body are dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._sizes.head(self.url, self.headers)
        if self.parser.get_method() == b"CONNECT":
            raise RejectedError(400, "this server is no proxy")
        if self.parser.should_upgrade():
            return  # parsed again, see `_without_upgrade`
        super().on_headers_complete()
        self.cycle.transport = ClosingTransport(self.transport, self._finish)  # type: ignore[assignment]
        if self.pipeline:
            self.flow.resume_reading()  # else nobody would see it hang up

    def on_body(self, body: bytes) -> None:
        self._sizes.body(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # What the answer calls.

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

    # What the server asks and does at its end.

    @property
    def busy(self) -> bool:
        """Whether a complete request of it is being answered."""
        return self._ahead() and not self.transport.is_closing()

    def shutdown(self) -> None:
        """Close, after an error for a request that has begun, if its answer has not.

        What is written already is still sent.
        """
        active = self._active
        if active is not None and active.response_complete:
            active = None
        begun = self._messages > 0 and self._phase_now() is not None and not self._ended
        if begun and (active is None or not active.response_started):
            if active is not None:
                _drop(active)
            self._write_refusal(503, DRAINING, retry_after=1)
        self._deaf = self._ended = True
        self._close()

    # Reading, and the time it may take.

    def _ahead(self) -> bool:
        """Whether what follows belongs to later requests than the one being answered."""
        cycle = self.cycle
        if self.pipeline:
            return True
        return cycle is not None and not cycle.response_complete and not cycle.more_body

    def _parse(self) -> None:
        while self._pending and not self._deaf and not self._ahead():
            part = bytes(self._pending[:SLICE])
            del self._pending[:SLICE]
            try:
                self.parser.feed_data(part)
                self._sizes.parsed(len(part))
            except httptools.HttpParserUpgrade as upgrade:
                self._pending[:0] = self._without_upgrade() + part[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
            except (RejectedError, httptools.HttpParserError) as error:
                # The parser wraps what its callbacks raise.
                cause = error if isinstance(error, RejectedError) else error.__context__
                if isinstance(cause, RejectedError):
                    self._refuse(cause.status, cause.message)
                else:
                    self._refuse(400, "this is not a valid HTTP request")
        self._watch()

    def _without_upgrade(self) -> bytes:
        """The head just parsed, less the offer of another protocol: none is spoken here.

        The parser would take the body for that protocol's.
        """
        fields = (field for field in self.headers if field[0] != b"upgrade")
        lines = [b"%s: %s\r\n" % field for field in fields]
        start = b"%s %s HTTP/1.1\r\n" % (self.parser.get_method(), self.url)
        return start + b"".join(lines) + b"\r\n"

    def _watch(self) -> None:
        """Set the time limit for what the client must do next, if it has changed."""
        if self._ended:
            return
        phase = self._phase_now()
        if self._ahead():
            self._all.works(self)
        else:
            self._all.waits(self)
        if phase == self._phase:
            return
        self._phase = phase
        seconds = {"head": self._patience.header, "body": self._patience.body}
        self._after(None if phase is None else seconds.get(phase[0]), self._late)

    def _phase_now(self) -> tuple[str, int] | None:
        """What happens in which message; None between messages."""
        if self._ahead():
            return "answer", self._messages
        if self._sizes.in_head or not self._messages:
            return "head", max(1, self._messages)
        if self.cycle is not None and not self.cycle.response_complete:
            return "body", self._messages
        return None

    def _late(self) -> None:
        if self._messages:
            what = "headers" if self._sizes.in_head else "body"
            self._refuse(408, f"the {what} of the request did not come in time")
        else:
            self.transport.abort()

    # ClosingTransport.

    def _refuse(self, status: int, message: str, retry_after: int | None = None) -> None:
        """Answer with an error instead of what is being read, and close."""
        if retry_after is None:  # of connections too many `ConnectionLimiter` tells, once a minute
            log.info("%s: %d %s", self.client, status, message)
        self._deaf = True
        self._pending.clear()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._ahead() and not cycle.more_body:
                cycle.keep_alive = False  # closes after the answers to the requests before
                return
            if cycle is not self._active or cycle.response_started:
                self.transport.abort()
                return
            _drop(cycle)
        self._write_refusal(status, message, retry_after)
        self._finish()

    def _write_refusal(self, status: int, message: str, retry_after: int | None) -> None:
        date = self.server_state.default_headers
        self.transport.write(error_response(status, message, date, retry_after))

    def _finish(self) -> None:
        """Close once the client has read its answer, or does not.

        Closed with bytes unread, the client would get a reset, and might never see the answer.
        """
        self._deaf = self._ended = True
        self._pending.clear()
        self.pipeline.clear()
        self._all.works(self)
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.more_body and not self._sizes.in_head:
            self._close()
            return
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._after(self._patience.linger, self.transport.abort)

    def _close(self) -> None:
        self.transport.close()
        self._after(self._patience.unread, self.transport.abort)

    def _after(self, seconds: float | None, action: Callable[[], None]) -> None:
        """Set the one timer anew, or not at all."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, action)


def _drop(cycle: RequestResponseCycle) -> None:
    """Make an answer end as if its client had hung up."""
    cycle.disconnected = True
    cycle.message_event.set()
