"""uvicorn's server with an orderly end: refuse, let answers end, tell who is cut off, close."""

import asyncio
import functools
import logging
import os
import threading
import time
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from server.api.readiness import Readiness
from server.engine.engine import Engine
from server.http.connections import ConnectionLimiter
from server.http.protocol import HttpProtocol
from server.settings import Settings

log = logging.getLogger(__name__)

_FAREWELL_SECONDS = 1.0  # for the errors of those who are cut off, to be sent
_FORCED_SECONDS = 0.8  # from a second signal to the end, whatever hangs
_CLEANUP_SECONDS = 5.0  # for files and threads, after the last answer
_POLL_SECONDS = 0.02
_CLOSING_POLLS = 10


class HttpServer(uvicorn.Server):
    """Runs the app until a signal comes or the engine dies; `exit_code` says how it ended."""

    def __init__(
        self,
        config: uvicorn.Config,
        engine: Engine,
        readiness: Readiness,
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._engine = engine
        self._readiness = readiness
        self._drain_seconds = drain_seconds
        self._stalled = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the drain, the second ends the process within a second."""
        if self.should_exit:
            self.force_exit = True
            self.exit_code = 1
            _end_after(_FORCED_SECONDS, 1)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end; called ten times a second."""
        if self._readiness.failure is not None:
            log.critical("ending: %s", self._readiness.failure)
            self.exit_code = 1
            return True
        stalled = self._readiness.stalled
        if stalled != self._stalled:
            self._stalled = stalled
            log.warning(
                "the engine hangs: %s" if stalled else "the engine is back: %s",
                self._readiness.trouble() or "no trouble",
            )
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Drain, cut off who is left, and close. New requests are answered with 503 meanwhile."""
        self._readiness.draining = True
        if self._readiness.failure is None:
            if busy := self._busy():
                log.info("shutting down: %d requests may end in %g s", busy, self._drain_seconds)
            await self._quiet(self._drain_seconds)
        backstop = _end_after(_FAREWELL_SECONDS + _CLEANUP_SECONDS, self.exit_code or 1)
        threading.Thread(
            target=self._engine.stop, args=(_FAREWELL_SECONDS / 2,), daemon=True
        ).start()
        await self._quiet(_FAREWELL_SECONDS)
        for server in self.servers:
            server.close()
        if busy := self._busy():
            log.warning("shutting down: %d requests are cut off", busy)
        await self._close_all()
        await self.lifespan.shutdown()
        backstop.cancel()

    async def _quiet(self, seconds: float) -> None:
        """Wait until nothing is being answered, for some seconds at most."""
        deadline = time.monotonic() + seconds
        while self._busy() and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(_POLL_SECONDS)

    async def _close_all(self) -> None:
        """Close every connection, which ends the tasks that still answer on them."""
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for waited in range(_CLOSING_POLLS):
            if not self.server_state.connections and not self.server_state.tasks:
                return
            if waited == _CLOSING_POLLS // 2:  # it does not read what it was sent
                for connection in list(self.server_state.connections):
                    connection.transport.abort()
            await asyncio.sleep(_POLL_SECONDS)

    def _busy(self) -> int:
        """How many connections have an answer on its way."""
        connections = cast("set[HttpProtocol]", self.server_state.connections)
        return sum(connection.busy for connection in connections)


def serve(app: FastAPI, settings: Settings, connections: ConnectionLimiter) -> int:
    """Serve until the end; return the exit code."""
    server = HttpServer(
        server_config(app, settings, connections),
        app.state.service.engine,
        app.state.readiness,
        settings.drain_seconds,
    )
    server.run()
    return server.exit_code


def server_config(
    app: FastAPI, settings: Settings, connections: ConnectionLimiter
) -> uvicorn.Config:
    """uvicorn's configuration: our protocol and no other, one log line at most for each fault."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=functools.partial(HttpProtocol, connections),  # type: ignore[arg-type]
        ws="none",
        log_level="warning",
        access_log=False,
    )


def _end_after(seconds: float, code: int) -> threading.Timer:
    """End the process for certain, whatever thread or destructor hangs by then."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer
