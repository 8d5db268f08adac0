"""Decides for each request whether it is let in: by host, origin, API key and scope."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.api.access.hosts import HostCheck
from server.api.access.keys import ApiKey, KeyRing, open_key_ring
from server.api.access.scopes import RouteScopes, Scope
from server.api.page_files import PUBLIC_PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Scope as RequestScope

    from server.settings import Settings

HEALTH, METRICS = "/health", "/metrics"
NO_KEY = "-"
"""Stands for a client without a key."""
_OPEN_PATHS = {HEALTH, *PUBLIC_PATHS}
_CHECKED_HEADERS = (b"host", b"authorization", b"x-api-key", b"origin")
_BEARER = b"bearer "


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request gets this status and message instead of an answer."""

    status: int
    message: str


class AccessControl:
    """Lets requests in or refuses them, by their headers alone.

    `scopes` says what each route needs; without it, while the server loads, any key opens
    everything. Raise `ApiKeyError` for a file of keys that cannot be used.
    """

    def __init__(self, settings: "Settings", scopes: RouteScopes | None = None) -> None:
        self._keys: KeyRing = open_key_ring(settings.api_key, settings.api_key_file)
        self._hosts = HostCheck(settings, bool(self._keys))
        self._public = {*_OPEN_PATHS, *((METRICS,) if settings.public_metrics else ())}
        self._scopes = scopes

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
        return bool(self._keys)

    def refuse_host(self, request: "RequestScope") -> Refusal | None:
        """Return why a request is refused by its `Host` or `Origin`; None if it is not."""
        headers: list[tuple[bytes, bytes]] = request["headers"]
        names = [name for name, _ in headers if name in _CHECKED_HEADERS]
        if len(set(names)) < len(names):
            return Refusal(400, "a Host, Authorization, X-Api-Key or Origin header came twice")
        host = dict(headers).get(b"host", b"").decode("latin-1").lower()
        refused = self._hosts.refusal(host, _origin(request), request["http_version"])
        return None if refused is None else Refusal(*refused)

    def shares_with(self, request: "RequestScope") -> bool:
        """Whether the answer is shared with a page of another origin (CORS)."""
        return self._hosts.shares_with(_origin(request))

    def admit(self, request: "RequestScope") -> Refusal | str:
        """Return why a request is refused by its key, or the short name of its client."""
        needed = self._needed(request)
        key = self._sent_key(dict(request["headers"]))
        if key is None and self._keys and needed is not Scope.PUBLIC:
            return Refusal(401, "a valid API key is needed: Authorization: Bearer KEY")
        if needed is None and self._scopes is not None:
            return Refusal(404, f"there is no {request['path']} here")
        if key is not None and needed is not None and not key.opens(needed):
            held = ", ".join(sorted(key.scopes))
            return Refusal(403, f"this needs a key with the scope {needed}; yours has {held}")
        return NO_KEY if key is None else key.client

    def _needed(self, request: "RequestScope") -> Scope | None:
        """Return the scope that a request needs, None where no route has one."""
        if request["path"] in self._public:
            return Scope.PUBLIC
        if self._scopes is None:
            return None
        return self._scopes.find(request["method"], request["path"])

    def _sent_key(self, headers: "Mapping[bytes, bytes]") -> ApiKey | None:
        """Return the valid key in `Authorization: Bearer` or `X-Api-Key`, if there is one."""
        authorization = headers.get(b"authorization", b"")
        bearer = authorization[len(_BEARER) :] if authorization[:7].lower() == _BEARER else None
        sent = (bearer, headers.get(b"x-api-key"))
        found = [self._keys.find(one) for one in sent if one is not None]
        return next((key for key in found if key is not None), None)


def _origin(request: "RequestScope") -> str | None:
    """Return the header `Origin` in lower case, if there is one."""
    origin: bytes | None = dict(request["headers"]).get(b"origin")
    return None if origin is None else origin.decode("latin-1").lower()
