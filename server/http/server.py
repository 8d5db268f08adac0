"""uvicorn's server with an orderly shutdown.

New requests are refused, running ones may finish within a time, the rest get an error, and then
all connections are closed.
"""

import asyncio
import functools
import logging
import os
import socket
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn

from server.http.connection_limiter import ConnectionLimiter
from server.http.protocol import HttpProtocol
from server.http.startup_front import StartupFront
from server.settings import Settings

if TYPE_CHECKING:
    from server.api.readiness import Readiness

log = logging.getLogger(__name__)

_ERROR_SECONDS = 1.0  # for sending errors to the requests that are cut off
_FORCED_SECONDS = 0.8  # from a second signal to the end of the process
_CLEANUP_SECONDS = 5.0  # for files and threads, after the last answer
_POLL_SECONDS = 0.02
_CLOSING_POLLS = 10


class HttpServer(uvicorn.Server):
    """Runs the application of a front until a signal comes, loading fails or the engine dies.

    `exit_code` is 0 after one signal, else 1. After a signal, running requests may take another
    `drain_seconds`.
    """

    def __init__(self, config: uvicorn.Config, front: StartupFront, drain_seconds: float) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._front = front
        self._drain_seconds = drain_seconds
        self._stalled = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then begin to load."""
        await super().startup(sockets)
        if self.started:
            self._front.begin(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown at the first signal; end the process within a second at the next."""
        if self.should_exit:
            self.force_exit = True
            self.exit_code = 1
            _end_after(_FORCED_SECONDS, 1)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether it is time to end. uvicorn calls it ten times a second."""
        if self._front.failure is not None:
            return True
        if self._front.app is not None and self._engine_died(self._front.app.state.readiness):
            return True
        return await super().on_tick(counter)

    def _engine_died(self, readiness: "Readiness") -> bool:
        """Return whether the engine died, which is logged, and so is an engine that hangs."""
        if readiness.failure is not None:
            log.critical("ending: %s", readiness.failure)
            self.exit_code = 1
            return True
        stalled = readiness.stalled
        if stalled != self._stalled:
            self._stalled = stalled
            log.warning(
                "the engine hangs: %s" if stalled else "the engine is back: %s",
                readiness.trouble() or "no trouble",
            )
        return False

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Let requests finish, cut off the rest, and close. New requests get 503 meanwhile."""
        backstop = await self._end_requests() if self._front.app is not None else None
        for server in self.servers:
            server.close()
        if busy := self._busy_connections():
            log.warning("shutting down: %d requests are cut off", busy)
        await self._close_all()
        await self.lifespan.shutdown()
        if backstop is not None:
            backstop.cancel()

    async def _end_requests(self) -> threading.Timer:
        """Wait for the requests and stop the engine; return what ends the process if that hangs."""
        assert self._front.app is not None
        state = self._front.app.state
        state.readiness.draining = True
        if state.readiness.failure is None:
            if busy := self._busy_connections():
                log.info("shutting down: %d requests may end in %g s", busy, self._drain_seconds)
            await self._wait_until_idle(self._drain_seconds)
        backstop = _end_after(_ERROR_SECONDS + _CLEANUP_SECONDS, self.exit_code or 1)
        stop = state.service.engine.stop
        threading.Thread(target=stop, args=(_ERROR_SECONDS / 2,), daemon=True).start()
        await self._wait_until_idle(_ERROR_SECONDS)
        return backstop

    async def _wait_until_idle(self, seconds: float) -> None:
        """Wait until nothing is being answered, at most for some seconds."""
        deadline = time.monotonic() + seconds
        while self._busy_connections() and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(_POLL_SECONDS)

    async def _close_all(self) -> None:
        """Close every connection, which ends the tasks that still answer requests."""
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for waited in range(_CLOSING_POLLS):
            if not self.server_state.connections and not self.server_state.tasks:
                return
            if waited == _CLOSING_POLLS // 2:  # clients that do not read what they were sent
                for connection in list(self.server_state.connections):
                    connection.transport.abort()
            await asyncio.sleep(_POLL_SECONDS)

    def _busy_connections(self) -> int:
        """Return the number of connections with a request that is being answered."""
        connections = cast("set[HttpProtocol]", self.server_state.connections)
        return sum(connection.busy for connection in connections)


def serve(front: StartupFront, settings: Settings, limiter: ConnectionLimiter) -> int:
    """Serve until the end. Return the exit code of the process.

    Raises what the front's `load` raised. A signal while it loads ends the process at once.
    """
    server = HttpServer(server_config(front, settings, limiter), front, settings.drain_seconds)
    server.run()
    if front.failure is not None:
        raise front.failure
    if front.loading:  # its thread may be in the middle of anything, and is not waited for
        logging.shutdown()
        os._exit(server.exit_code)
    return server.exit_code


def server_config(
    front: StartupFront, settings: Settings, limiter: ConnectionLimiter
) -> uvicorn.Config:
    """Return uvicorn's configuration: only `HttpProtocol`, and log lines as all others are."""
    return uvicorn.Config(
        front,
        host=settings.host,
        port=settings.port,
        http=functools.partial(HttpProtocol, limiter),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
    )


def _end_after(seconds: float, code: int) -> threading.Timer:
    """End the process after some seconds, even if a thread or a destructor hangs."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer
