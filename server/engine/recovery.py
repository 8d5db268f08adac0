"""How often an engine that broke may start again."""

import time
from collections import deque
from collections.abc import Callable

_MOST = 3
_WITHIN_SECONDS = 300.0
_FIRST_PAUSE_SECONDS = 0.5  # each further one is twice as long


class RestartBudget:
    """Three restarts in five minutes: what breaks more often does not get well by itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque()

    def take(self) -> float | None:
        """Return the pause before the next restart, in seconds; None if there is none left."""
        now = self._clock()
        while self._times and now - self._times[0] > _WITHIN_SECONDS:
            self._times.popleft()
        if len(self._times) >= _MOST:
            return None
        pause = _FIRST_PAUSE_SECONDS * 2 ** len(self._times)
        self._times.append(now)
        return pause
