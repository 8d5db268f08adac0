"""The HTTP server: connections and their limits, and an orderly shutdown."""

from server.http.connection_limiter import connection_limiter
from server.http.server import serve

__all__ = ["connection_limiter", "serve"]
