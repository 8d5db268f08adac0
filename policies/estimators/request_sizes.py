"""How large a request is beside recent ones."""

from collections import deque

_WINDOW = 100
"""Requests that another one is compared with."""


class RequestSizes:
    """The work of recent requests, in seconds of a machine that serves full batches of the base."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_WINDOW)

    def observe(self, work: float) -> None:
        """Add the work of a request that arrives, in seconds."""
        self._recent.append(work)

    def rank(self, work: float) -> float:
        """Return the share (0..1) of all recent work that is in requests smaller than `work`.

        Requests of equal size count half. Without any recent request the rank is 1.
        """
        total = smaller = equal = 0.0
        for one in self._recent:
            total += one
            if one < work:
                smaller += one
            elif one == work:
                equal += one
        return (smaller + equal / 2) / total if total else 1.0
