"""Who is let in: by key, by the name that the server is called by, and by the page that asks."""

import hmac
from ipaddress import ip_address

from starlette.types import Scope

from server.api.page import PUBLIC_PATHS

HEALTH = "/health"
_OPEN = {HEALTH, *PUBLIC_PATHS}  # without a key
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_ONCE = (b"host", b"authorization", b"origin")
_HINT = "allow it with TRIMTAB_ALLOWED_HOSTS"


class AccessControl:
    """Refuses requests by their headers alone.

    Without a key, a web page anywhere could ask a server on its visitor's machine, so

    - a server that listens on loopback answers only to loopback's names and the allowed ones (a
      foreign name that leads here is one that somebody rebound), and
    - a page of another origin is refused.

    With a key neither is checked, since such a page does not know it. `allowed_hosts` are names,
    with or without a port; if there are any, no other name is ever answered to, but those of
    loopback where that is listened on.
    """

    def __init__(self, api_key: str | None, host: str, allowed_hosts: tuple[str, ...]) -> None:
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._allowed = {name.lower() for name in allowed_hosts}
        self._hosts: set[str] | None = None  # None: any
        loopback = _is_loopback(host)
        if self._allowed or (loopback and api_key is None):
            self._hosts = self._allowed | ({*_LOOPBACK, host.lower()} if loopback else set())

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """The status and message of a refusal; None for who may come in."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        found = {name: value for name, value in headers if name in _ONCE}
        if sum(name in _ONCE for name, _ in headers) > len(found):
            return 400, "a Host, Authorization or Origin header came twice"
        host = found.get(b"host", b"").decode("latin-1").lower()
        if not host and scope["http_version"] != "1.0":
            return 400, "the Host header is missing"
        if host and self._hosts is not None and not _among(host, self._hosts):
            return 403, f"this server is not called '{host[:100]}'; {_HINT}"
        if self._key is None:
            origin = found.get(b"origin")
            if origin is not None and not self._own(origin.decode("latin-1").lower(), host):
                return 403, f"pages of another origin may not ask this server; {_HINT}"
        elif scope["path"] not in _OPEN:
            given = found.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):
                return 401, "a valid API key is needed: Authorization: Bearer KEY"
        return None

    def _own(self, origin: str, host: str) -> bool:
        _, scheme, name = origin.partition("://")
        return bool(scheme) and (name == host or _among(name, self._allowed))


def _among(host: str, names: set[str]) -> bool:
    """Whether a host, maybe with a port, is one of the names, maybe with ports."""
    name, colon, port = host.rpartition(":")
    return host in names or (bool(colon) and port.isdigit() and name in names)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
