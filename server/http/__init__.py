"""How requests come in: connections and their limits, and a server that ends in good order."""

from server.http.connections import connections_of
from server.http.server import serve

__all__ = ["connections_of", "serve"]
