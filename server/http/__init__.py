"""How requests come in: connections and their limits, and a server that ends in good order."""

from server.http.connections import connection_limiter
from server.http.server import serve

__all__ = ["connection_limiter", "serve"]
