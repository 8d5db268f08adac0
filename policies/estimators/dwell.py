"""Which variant similar requests get at present, and since when."""

from collections import OrderedDict
from collections.abc import Callable

from policies.observation import REFUSED, Objectives, Observation, Reason

_MAX_CLASSES = 256
"""Classes of requests that are remembered."""
_SIZE_STEPS = 8
"""Steps of a request's size rank, from the smallest requests to the largest."""
_LONG_AGO = 1e9
"""Seconds. Longer than any dwell time."""

RequestClass = tuple[Objectives, int]
"""The objectives and the rounded size rank of similar requests."""


class DwellTracker:
    """Remembers the current variant of each class of similar requests.

    Requests of one class (same objectives, similar size) share a variant, which is kept for the
    dwell time after a change. Requests of other classes have no influence on it. `clock` returns
    seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._current: OrderedDict[RequestClass, tuple[str, float]] = OrderedDict()

    def current(self, objectives: Objectives, rank: float) -> tuple[str | None, float]:
        """Return the variant of such requests and the seconds since it was changed to.

        `rank` is the request's size rank (0..1). Without any earlier request: (None, 0).
        """
        entry = self._current.get(_class_of(objectives, rank))
        if entry is None:
            return None, 0.0
        variant, changed = entry
        return variant, self._clock() - changed

    def observe(self, observation: Observation, variant: str, reason: Reason) -> None:
        """Remember the chosen variant, unless it was chosen for this one request alone."""
        if reason in (Reason.PINNED, Reason.EXPLORED, *REFUSED):
            return
        key = _class_of(observation.objectives, observation.rank)
        if observation.held is None:
            self._current[key] = (variant, -_LONG_AGO)  # the first choice is not a change
        elif observation.held != variant:
            self._current[key] = (variant, self._clock())
        self._current.move_to_end(key)
        while len(self._current) > _MAX_CLASSES:
            self._current.popitem(last=False)


def _class_of(objectives: Objectives, rank: float) -> RequestClass:
    return objectives, round(rank * _SIZE_STEPS)
