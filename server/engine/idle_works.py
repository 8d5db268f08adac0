"""Several kinds of work for idle moments, one behind the other."""

from server.engine.options import IdleWork


class IdleWorks:
    """Does a piece of the first of `works` that has something to do (see `IdleWork`)."""

    def __init__(self, *works: IdleWork) -> None:
        self._works = works

    def step(self) -> bool:
        """Do one piece; return False if there is nothing to do."""
        return any(work.step() for work in self._works)

    def make_way(self) -> None:
        """Give back the memory that requests may need."""
        for work in self._works:
            work.make_way()

    @property
    def slots(self) -> int:
        """Return how many slots of the cache `make_way` would give back."""
        return sum(work.slots for work in self._works)
