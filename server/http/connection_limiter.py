"""How many connections may be open, and which one is closed when there are too many."""

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

_MAX_DESCRIPTORS = 65_536
_OTHER_DESCRIPTORS = 128  # reserved for files, sensors, and connections that are being refused
_DEFAULT_CONNECTIONS, _MIN_CONNECTIONS = 10_000, 16
_MAX_LINGERING = _OTHER_DESCRIPTORS // 2  # refused connections that stay open for a moment
_LOG_SECONDS = 60.0  # between two warnings


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """How long a client may take for something, in seconds."""

    header: float  # for a request line and its headers, from the connection on
    body: float  # for the body of a request
    idle: float = 5.0  # between a response and the next request
    unread: float = 60.0  # for reading, while the write buffer is full
    linger: float = 2.0  # for reading a refusal, while the rest of its request is dropped


class ConnectionLimiter:
    """Bounds the number of open connections.

    At the bound, a new connection replaces the one that has been idle longest. A connection is
    idle while none of its requests is being answered.
    """

    def __init__(self, max_connections: int, timeouts: ClientTimeouts) -> None:
        self.max_connections = max_connections
        self.timeouts = timeouts
        self._idle: dict[HttpProtocol, None] = {}  # the one that has been idle longest comes first
        self._replaced = 0
        self._refused = 0
        self._logged = -_LOG_SECONDS

    def mark_idle(self, connection: "HttpProtocol") -> None:
        """Note that a connection waits for its client. An idle one keeps its place."""
        self._idle.setdefault(connection)

    def mark_busy(self, connection: "HttpProtocol") -> None:
        """Note that a request of a connection is being answered, or that it is closed."""
        self._idle.pop(connection, None)

    def make_room(self, open_connections: int) -> bool:
        """Close the connection that has been idle longest, if there is one too many.

        Return whether there is room for the newest, which is one of the `open_connections` but
        not marked yet.
        """
        if open_connections <= self.max_connections:
            return True
        oldest = next(iter(self._idle), None)
        if oldest is None:
            self._refused += 1
        else:
            self._replaced += 1
            self.mark_busy(oldest)
            oldest.transport.abort()
        self._report()
        return oldest is not None

    def may_linger(self, open_connections: int) -> bool:
        """Whether a refused connection may stay open for a moment, until its refusal is read."""
        return open_connections - self.max_connections <= _MAX_LINGERING

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._logged < _LOG_SECONDS:
            return
        log.warning(
            "all %d connections are in use: %d idle ones closed, %d new ones refused",
            self.max_connections,
            self._replaced,
            self._refused,
        )
        self._logged, self._replaced, self._refused = now, 0, 0


def connection_limiter(settings: Settings) -> ConnectionLimiter:
    """Return the limiter that the settings describe.

    Raise the process's limit on open files as far as the system allows. Raise `SettingsError` if
    that is too low for `max_connections`.
    """
    files = _raise_descriptor_limit()
    room = None if files is None else files - _OTHER_DESCRIPTORS
    requested = settings.max_connections
    needed = requested or _MIN_CONNECTIONS
    if room is not None and room < needed:
        raise SettingsError(
            f"max_connections: {needed} need {needed + _OTHER_DESCRIPTORS} open "
            f"files, the system allows {files}; see `ulimit -n`"
        )
    max_connections = requested or min(_DEFAULT_CONNECTIONS, room or _DEFAULT_CONNECTIONS)
    timeouts = ClientTimeouts(settings.header_seconds, settings.body_seconds)
    return ConnectionLimiter(max_connections, timeouts)


def _raise_descriptor_limit() -> int | None:
    """Raise the limit on open files and return it; None where there is none."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    target = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft < target:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        except (OSError, ValueError):
            return soft
        return target
    return soft
