"""Which requests are let in, by API key, `Host` and `Origin`."""

import hmac
from ipaddress import ip_address
from typing import TYPE_CHECKING

from server.api.page_files import PUBLIC_PATHS

if TYPE_CHECKING:
    from starlette.types import Scope

HEALTH = "/health"
_WITHOUT_KEY = {HEALTH, *PUBLIC_PATHS}
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_CHECKED_HEADERS = (b"host", b"authorization", b"origin")
_HINT = "allow it with TRIMTAB_ALLOWED_HOSTS"


class AccessControl:
    """Refuses requests by their headers.

    Without an API key, a foreign web page could send requests to a server on the machine of its
    visitor. Therefore

    - a server that listens on loopback accepts only loopback's host names and `allowed_hosts`
      (against DNS rebinding), and
    - requests of pages of another origin are refused.

    With a key neither is needed, since such a page does not know it. `allowed_hosts` are names
    with or without a port; if there are any, only they are accepted, and loopback's names where
    the server listens on loopback.
    """

    def __init__(self, api_key: str | None, host: str, allowed_hosts: tuple[str, ...]) -> None:
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._allowed = {name.lower() for name in allowed_hosts}
        self._hosts: set[str] | None = None  # None: any
        loopback = _is_loopback(host)
        if self._allowed or (loopback and api_key is None):
            self._hosts = self._allowed | ({*_LOOPBACK, host.lower()} if loopback else set())

    def refusal(self, scope: "Scope") -> tuple[int, str] | None:
        """Return the status and message of a refusal, or None for a request that is let in."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        checked = {name: value for name, value in headers if name in _CHECKED_HEADERS}
        if sum(name in _CHECKED_HEADERS for name, _ in headers) > len(checked):
            return 400, "a Host, Authorization or Origin header came twice"
        host = checked.get(b"host", b"").decode("latin-1").lower()
        if not host and scope["http_version"] != "1.0":
            return 400, "the Host header is missing"
        if host and self._hosts is not None and not _matches_any(host, self._hosts):
            return 403, f"this server is not called '{host[:100]}'; {_HINT}"
        if self._key is None:
            origin = checked.get(b"origin")
            if origin is not None and not self._may_ask(origin.decode("latin-1").lower(), host):
                return 403, f"pages of another origin may not ask this server; {_HINT}"
        elif scope["path"] not in _WITHOUT_KEY:
            key = checked.get(b"authorization", b"")
            if not hmac.compare_digest(key, self._key):
                return 401, "a valid API key is needed: Authorization: Bearer KEY"
        return None

    def _may_ask(self, origin: str, host: str) -> bool:
        """Whether a page's origin is this server or an allowed host."""
        _, scheme, name = origin.partition("://")
        return bool(scheme) and (name == host or _matches_any(name, self._allowed))


def _matches_any(host: str, names: set[str]) -> bool:
    """Whether a host with or without a port is one of some names with or without ports."""
    name, colon, port = host.rpartition(":")
    return host in names or (bool(colon) and port.isdigit() and name in names)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
