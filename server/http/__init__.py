"""The HTTP server: connections and their limits, the start, and an orderly shutdown."""

from server.http.connection_limiter import connection_limiter
from server.http.server import serve
from server.http.startup_front import StartupFront

__all__ = ["StartupFront", "connection_limiter", "serve"]
