"""What answers from the first moment on: it says that the server is loading, then hands over."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from server.api.access.control import HEALTH, AccessControl
from server.api.access_log import AccessLog
from server.api.error_envelope import envelope
from server.api.ingress import IngressMiddleware
from server.api.page_files import PAGE_HEADERS, page_file
from server.api.plain_response import send_body, send_json
from server.engine.loading.stages import StartupStages, watch
from server.http.startup_screen import StartupScreen
from server.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import Receive, Scope, Send

_RETRY_SECONDS = 1


class StartupFront:
    """The ASGI application of the server's socket.

    `load` makes the application in a thread of its own. Until it is there, `/health` answers 503
    with the stage of the start, the page is there and shows it, and everything else gets an error.
    `app` is None until then; `failure` is what `load` raised.
    """

    def __init__(self, settings: Settings, load: Callable[[], "FastAPI"]) -> None:
        screen = StartupScreen(settings)
        self.app: FastAPI | None = None
        self.failure: BaseException | None = None
        self.stages = StartupStages(screen.stage_ended)
        self._load = load
        self._screen = screen
        self._lifespan = AsyncExitStack()  # of the application
        self._logged = AccessLog(self._dispatch, settings.access_log)
        self._loading = IngressMiddleware(
            self._answer,
            settings.max_body_bytes,
            AccessControl(settings),
            draining=lambda: False,
        )

    @property
    def loading(self) -> bool:
        """Return whether the application is still being made."""
        return self.app is None and self.failure is None

    def begin(self, port: int) -> None:
        """Start to load, in a thread beside the running event loop; `port` is bound."""
        self._screen.begin(port)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, args=(loop, port), name="loading", daemon=True).start()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request, or run until the server ends."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._logged(scope, receive, send)

    async def _dispatch(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if self.app is None:
            await self._loading(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _run(self, loop: asyncio.AbstractEventLoop, port: int) -> None:
        watch(self.stages)
        try:
            app = self._load()
            asyncio.run_coroutine_threadsafe(self._open(app), loop).result()
            self._screen.ready(app.state.summary, port)
        except BaseException as error:  # whatever it is, the server ends with it
            self.failure = error

    async def _open(self, app: "FastAPI") -> None:
        await self._lifespan.enter_async_context(app.router.lifespan_context(app))
        self.app = app

    async def _live(self, receive: "Receive", send: "Send") -> None:
        """Follow the protocol for the life of an application."""
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._lifespan.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        file = page_file(scope["path"]) if scope["method"] in ("GET", "HEAD") else None
        if file is not None:
            await send_body(send, file.body, {**PAGE_HEADERS, "Content-Type": file.media_type})
            return
        name, progress = self.stages.name, self.stages.progress
        if scope["path"] == HEALTH:
            body: dict[str, object] = {"status": "loading", "stage": name, "progress": progress}
        else:
            share = "" if progress is None else f", {progress:.0%}"
            body = envelope(503, f"the server is loading the model ({name}{share})")
        await send_json(send, 503, body, _RETRY_SECONDS)
