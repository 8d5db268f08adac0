"""Which variant requests get at present, by their objectives and size, and since when."""

from collections import OrderedDict
from collections.abc import Callable

from policies.observation import REFUSED, Objectives, Observation, Reason

_KINDS = 256  # of requests that are remembered
_SIZES = 8  # kinds from the smallest to the largest
_LONG_AGO = 1e9  # seconds


class DwellTracker:
    """Requests of one kind share one variant at a time; others do not make it flap."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: OrderedDict[tuple[Objectives, int], tuple[str, float]] = OrderedDict()

    def by(self, objectives: Objectives, rank: float) -> tuple[str | None, float]:
        """The variant, and the seconds since it was changed to."""
        kind = _kind(objectives, rank)
        if kind not in self._since:
            return None, 0.0
        variant, since = self._since[kind]
        return variant, self._clock() - since

    def note(self, observation: Observation, variant: str, reason: Reason) -> None:
        """Remembers what was chosen, unless it was chosen for this request alone."""
        if reason in (Reason.PINNED, Reason.EXPLORED, *REFUSED):
            return
        kind = _kind(observation.objectives, observation.rank)
        if observation.held is None:
            self._since[kind] = (variant, -_LONG_AGO)  # nothing was changed
        elif observation.held != variant:
            self._since[kind] = (variant, self._clock())
        self._since.move_to_end(kind)
        while len(self._since) > _KINDS:
            self._since.popitem(last=False)


def _kind(objectives: Objectives, rank: float) -> tuple[Objectives, int]:
    return objectives, round(rank * _SIZES)
