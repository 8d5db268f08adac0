"""How much work arrives, as a share of what the machine can do."""

import math

_TIME_CONSTANT = 5.0
"""Seconds after which the weight of a request has fallen to 1/e."""
_MIN_SPAN = 1.5
"""Seconds. A shorter series of arrivals counts as if it had lasted this long."""


class LoadEstimator:
    """An exponentially weighted rate of arriving work since the machine was last idle.

    Work is measured in seconds of a machine that serves full batches of the base, so `value` is a
    ratio: 1.0 means that requests arrive exactly as fast as the base can answer them.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._work = 0.0  # seconds of work that arrived, with older work counting less
        self._last = self._start = -math.inf  # times of the last and of the first arrival

    def observe(self, now: float, work: float, idle: bool = False) -> None:
        """Add `work` seconds that arrive at `now`, in seconds of a clock that never goes back.

        If the machine is `idle`, it has done all earlier work, which is then forgotten.
        """
        if idle or self._start == -math.inf:
            self._work, self._start = 0.0, now
        else:
            self._work *= math.exp((self._last - now) / _TIME_CONSTANT) if now > self._last else 1.0
        self._work += work
        self._last = now
        # The integral of the weights over the time observed so far: bias correction as in Adam.
        span = now - self._start
        weight = 1 - math.exp(-(span if span > _MIN_SPAN else _MIN_SPAN) / _TIME_CONSTANT)
        self.value = self._work / (_TIME_CONSTANT * weight)
