"""Which variant requests get at present, by their objectives, and since when."""

from collections import OrderedDict
from collections.abc import Callable

from policies.observation import REFUSED, Objectives, Observation, Reason

_KINDS = 256  # of objectives that are remembered
_LONG_AGO = 1e9  # seconds


class Held:
    """Requests that ask for the same share one variant at a time; others do not make it flap."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: OrderedDict[Objectives, tuple[str, float]] = OrderedDict()

    def by(self, objectives: Objectives) -> tuple[str | None, float]:
        """The variant, and the seconds since it was changed to."""
        if objectives not in self._since:
            return None, 0.0
        variant, since = self._since[objectives]
        return variant, self._clock() - since

    def note(self, observation: Observation, variant: str, reason: Reason) -> None:
        """Remembers what was chosen, unless it was chosen for this request alone."""
        if reason in (Reason.PINNED, Reason.EXPLORED, *REFUSED):
            return
        objectives = observation.objectives
        if observation.held is None:
            self._since[objectives] = (variant, -_LONG_AGO)  # nothing was changed
        elif observation.held != variant:
            self._since[objectives] = (variant, self._clock())
        self._since.move_to_end(objectives)
        while len(self._since) > _KINDS:
            self._since.popitem(last=False)
