"""How much more memory the KV cache may take from the host, by its readings."""

import math
from collections.abc import Callable

from telemetry import Snapshot

_RESERVE_SHARE = 0.05  # of the memory, which is left to the host
_STALLED_SHARE = 0.1  # of the time, in which something waits for memory


class MemoryAllowance:
    """Grants memory while the host keeps a reserve.

    Readings are half a second old, so what was granted since the last one counts as taken. Where
    memory cannot be read, all is granted. Used by the engine's thread; `available` by any.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._granted = 0  # bytes since the reading of this time
        self._reading_at = 0.0

    def take(self, size: int) -> bool:
        """Grant `size` bytes, or return False if the host has not so many to spare."""
        snapshot = self._snapshot()
        if snapshot.taken_at != self._reading_at:
            self._granted, self._reading_at = 0, snapshot.taken_at
        spare = _spare_bytes(snapshot)
        if spare is not None and size > spare - self._granted:
            return False
        self._granted += size
        return True

    def available(self) -> float | None:
        """Return how many bytes could be granted now; None if nobody knows."""
        spare = _spare_bytes(self._snapshot())
        return None if spare is None else max(0.0, spare)

    def shortage(self) -> float:
        """Return how many bytes the host lacks to its reserve; 0 if it has them."""
        return max(0.0, -(_spare_bytes(self._snapshot()) or 0.0))


def _spare_bytes(snapshot: Snapshot) -> float | None:
    """Return the available bytes above the reserve, which are negative if there are fewer.

    They are minus infinity while processes wait for memory, however much seems to be free.
    """
    if (snapshot.memory_pressure_ratio.value or 0.0) >= _STALLED_SHARE:
        return -math.inf
    total, available = snapshot.memory_total_bytes.value, snapshot.memory_available_bytes.value
    if total is None or available is None:
        return None
    return available - _RESERVE_SHARE * total
