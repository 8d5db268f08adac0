"""Which host names a server answers to, and which web pages may ask it."""

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.settings import Settings

ANY_ORIGIN = "*"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HINT = "allow it with TRIMTAB_ALLOWED_HOSTS"


class HostCheck:
    """Refuses requests by `Host` and `Origin`.

    Without an API key, a foreign web page could send requests to a server on the machine of its
    visitor. Therefore

    - a server that listens on loopback accepts only loopback's host names and `allowed_hosts`
      (against DNS rebinding), and
    - requests of pages of another origin are refused, but for `cors_origins`.

    With a key neither is needed, since such a page does not know it. `allowed_hosts` are names
    with or without a port; if there are any, only they are accepted, and loopback's names where
    the server listens on loopback.
    """

    def __init__(self, settings: "Settings", has_keys: bool) -> None:
        host, allowed = settings.host.lower(), {name.lower() for name in settings.allowed_hosts}
        self._has_keys = has_keys
        self._allowed = allowed
        self._origins = {origin.lower() for origin in settings.cors_origins}
        self._hosts: set[str] | None = None  # None: any
        loopback = _is_loopback(host)
        if allowed or (loopback and not has_keys):
            self._hosts = allowed | ({*_LOOPBACK, host} if loopback else set())

    def refusal(self, host: str, origin: str | None, http_version: str) -> tuple[int, str] | None:
        """Return the status and message of a refusal, or None for a request that is let in.

        `host` and `origin` are headers in lower case; `host` is empty where there is none.
        """
        if not host and http_version != "1.0":
            return 400, "the Host header is missing"
        if host and self._hosts is not None and not _matches_any(host, self._hosts):
            return 403, f"this server is not called '{host[:100]}'; {_HINT}"
        if origin is not None and not self._has_keys and not self._may_ask(origin, host):
            return 403, (
                "pages of another origin may not ask this server; allow them with "
                "TRIMTAB_CORS_ORIGINS"
            )
        return None

    def shares_with(self, origin: str | None) -> bool:
        """Whether a page's browser is told that it may read the answers (CORS)."""
        return origin is not None and (origin in self._origins or ANY_ORIGIN in self._origins)

    def _may_ask(self, origin: str, host: str) -> bool:
        """Whether a page's origin is this server, an allowed host or an allowed origin."""
        _, scheme, name = origin.partition("://")
        own = bool(scheme) and (name == host or _matches_any(name, self._allowed))
        return own or self.shares_with(origin)


def split_origins(value: object) -> object:
    """Return the origins in a setting, which may be separated by commas. Raise `ValueError`."""
    origins = value.split(",") if isinstance(value, str) else value
    if isinstance(origins, list | tuple):
        for origin in origins:
            scheme, _, name = str(origin).partition("://")
            right = re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) and re.fullmatch(r"[^/\s]+", name)
            if origin != ANY_ORIGIN and not right:
                raise ValueError("expected origins such as https://chat.example")
    return origins


def _matches_any(host: str, names: set[str]) -> bool:
    """Whether a host with or without a port is one of some names with or without ports."""
    name, colon, port = host.rpartition(":")
    return host in names or (bool(colon) and port.isdigit() and name in names)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
