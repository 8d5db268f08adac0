"""How many connections may be open, and which one goes when there are too many."""

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.settings import Settings, SettingsError

try:
    import resource
except ImportError:  # there are no such limits on Windows
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from server.http.protocol import HttpProtocol

log = logging.getLogger(__name__)

_WANTED_DESCRIPTORS = 65_536
_OTHER_DESCRIPTORS = 128  # for files, sensors, and connections that are being refused
_DEFAULT_CONNECTIONS = 10_000
_LINGERING = _OTHER_DESCRIPTORS // 2  # refused connections that may wait to be read
_LOG_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """How long a client may take, in seconds."""

    header: float  # for a request line and its headers, from the connection on
    body: float
    idle: float = 5.0  # between an answer and the next request
    unread: float = 60.0  # for reading what fills the write buffer
    linger: float = 2.0  # for reading a refusal, while the rest of a request is thrown away


class ConnectionLimiter:
    """The cap on open connections: those not being answered give way to new ones, oldest first."""

    def __init__(self, most: int, patience: ClientTimeouts) -> None:
        self.most = most
        self.patience = patience
        self._waiting: dict[HttpProtocol, None] = {}  # in the order in which they began to wait
        self._given_way = 0
        self._refused = 0
        self._logged = -_LOG_SECONDS

    def waits(self, connection: "HttpProtocol") -> None:
        """Note that a connection has no complete request."""
        self._waiting.setdefault(connection)

    def works(self, connection: "HttpProtocol") -> None:
        """Note that a request of it is being answered, or that it is closed."""
        self._waiting.pop(connection, None)

    def make_room(self, open_connections: int) -> bool:
        """Close the connection that has waited longest, if there is one too many.

        Return whether there is room for the newest, which is among the `open_connections` but
        not waiting yet.
        """
        if open_connections <= self.most:
            return True
        oldest = next(iter(self._waiting), None)
        if oldest is None:
            self._refused += 1
        else:
            self._given_way += 1
            self.works(oldest)
            oldest.transport.abort()
        self._report()
        return oldest is not None

    def may_linger(self, open_connections: int) -> bool:
        """Whether a refused connection may stay for a moment, so that its refusal is read."""
        return open_connections - self.most <= _LINGERING

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._logged < _LOG_SECONDS:
            return
        log.warning(
            "all %d connections are in use: %d idle ones closed, %d new ones refused",
            self.most,
            self._given_way,
            self._refused,
        )
        self._logged, self._given_way, self._refused = now, 0, 0


def connection_limiter(settings: Settings) -> ConnectionLimiter:
    """The cap and the times of the settings.

    Raises the process's limit on open files as far as the system lets it. Raises `SettingsError`
    if that is too low for the connections that are asked for.
    """
    files = _descriptor_limit()
    room = None if files is None else files - _OTHER_DESCRIPTORS
    wanted = settings.max_connections
    if room is not None and room < (wanted or 16):
        raise SettingsError(
            f"max_connections: {wanted or 16} need {(wanted or 16) + _OTHER_DESCRIPTORS} open "
            f"files, the system allows {files}; see `ulimit -n`"
        )
    most = wanted or min(_DEFAULT_CONNECTIONS, room or _DEFAULT_CONNECTIONS)
    return ConnectionLimiter(most, ClientTimeouts(settings.header_seconds, settings.body_seconds))


def _descriptor_limit() -> int | None:
    """The limit on open files after raising it; None where there is none."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    most = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):
            return soft
        return most
    return soft
