"""How requests come in: connections and their limits, and a server that ends in good order."""

from server.http.connections import Connections
from server.http.server import Server, serve

__all__ = ["Connections", "Server", "serve"]
