"""Other names of routes, and HEAD: what other servers answer, too."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_ALIASES = {
    f"/{name}": f"/v1/{name}"
    for name in (
        *("chat/completions", "completions", "embeddings", "models"),
        *("responses", "messages", "messages/count_tokens"),
    )
}
_PREFIX = "/models/"


class RouteAliases:
    """ASGI middleware: routes answer without `/v1`, too, and to HEAD as to GET without a body.

    It stands before all that decides by path or method. The server leaves the body of an answer to
    HEAD out.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on under its usual path and method."""
        if scope["type"] == "http":
            path = scope["path"]
            usual = _ALIASES.get(path)
            if usual is None and path.startswith(_PREFIX):
                usual = f"/v1{path}"
            method = scope["method"]
            if usual is not None or method == "HEAD":
                method = "GET" if method == "HEAD" else method
                scope = {**scope, "path": usual or path, "method": method}
        await self._app(scope, receive, send)
