"""Whether a worker may run now: nobody waits, there is power, and there is memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from telemetry import Snapshot

LearningMode = Literal["idle", "now", "off"]

_QUIET_SECONDS = 2.0
"""How long no request must have come or run before the worker goes on."""
_SPARE_SHARE, _MIN_SPARE_BYTES = 0.05, 400 * 10**6
"""Of all memory, what stays free beside the worker."""

BUSY = "requests are being answered"
ON_BATTERY = "the machine runs on battery"


class Verdict(NamedTuple):
    """Why the worker may not run, None if it may; `kill` if it also has to give its memory back."""

    reason: str | None = None
    kill: bool = False


@dataclass(frozen=True, slots=True)
class HostState:
    """Where the state of server and machine is read: functions that are quick to call.

    `open_requests` are those that wait or run. `clock` is in seconds.
    """

    open_requests: Callable[[], int]
    snapshot: Callable[[], Snapshot]
    clock: Callable[[], float] = time.monotonic


class Conditions:
    """Says whether the worker may run in a mode. One thread asks, any may call `note_request`."""

    def __init__(self, mode: LearningMode, host: HostState) -> None:
        self._waits = mode == "idle"
        self._host = host
        self._last_request = host.clock()

    def note_request(self) -> bool:
        """Note that a request has come; return whether the worker has to stop for it."""
        self._last_request = self._host.clock()
        return self._waits

    def verdict(self, needed_bytes: int, is_running: bool) -> Verdict:
        """Return whether the worker may run, which takes about `needed_bytes` once it is started.

        What cannot be read does not keep it from running.
        """
        snapshot = self._host.snapshot()
        free, total = snapshot.memory_available_bytes.value, snapshot.memory_total_bytes.value
        if free is not None:
            spare = max(_MIN_SPARE_BYTES, _SPARE_SHARE * (total or 0.0))
            needed = spare if is_running else spare + needed_bytes
            if free < needed:
                return Verdict(_too_little(free, needed), is_running)
        if snapshot.on_battery.value == 1.0:
            return Verdict(ON_BATTERY)
        if self._waits and (self._host.open_requests() or self._is_recent()):
            return Verdict(BUSY)
        return Verdict()

    def never_fits(self, needed_bytes: int) -> str | None:
        """Return why the machine is too small for the worker, None if it is not."""
        total = self._host.snapshot().memory_total_bytes.value
        if total is None or needed_bytes + _MIN_SPARE_BYTES <= total:
            return None
        return f"it takes {_gb(needed_bytes)} of memory, this machine has {_gb(total)} in all"

    def _is_recent(self) -> bool:
        return self._host.clock() - self._last_request < _QUIET_SECONDS


def _too_little(free: float, needed: float) -> str:
    return f"short of memory: {_gb(free)} are free, {_gb(needed)} are needed"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
