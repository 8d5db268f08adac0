"""Which slots of the cache are free."""

GRANULARITY = 64
"""Slots; regions are multiples of it, so that they seldom have to grow."""


class Arena:
    """First-fit allocation of contiguous runs out of `capacity` slots.

    Only the engine's thread allocates and releases; `used` may be read by any thread.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // GRANULARITY * GRANULARITY
        self.used = 0
        self._free: list[tuple[int, int]] = [(0, self.capacity)]  # (start, size), sorted

    def allocate(self, size: int) -> int | None:
        """Return the start of a free run of `size` slots, or None if there is none."""
        for index, (start, free) in enumerate(self._free):
            if free >= size:
                self._take(index, size)
                return start
        return None

    def extend(self, end: int, size: int) -> bool:
        """Take the `size` slots right behind `end`; return False if they are not free."""
        for index, (start, free) in enumerate(self._free):
            if start == end and free >= size:
                self._take(index, size)
                return True
        return False

    def release(self, start: int, size: int) -> None:
        """Give a run back and join it with its free neighbours."""
        if size == 0:
            return
        runs = sorted([*self._free, (start, size)])
        joined = [runs[0]]
        for run in runs[1:]:
            last = joined[-1]
            if last[0] + last[1] == run[0]:
                joined[-1] = (last[0], last[1] + run[1])
            else:
                joined.append(run)
        self._free = joined
        self.used -= size

    def _take(self, index: int, size: int) -> None:
        """Take the first `size` slots of a free run."""
        start, free = self._free[index]
        rest = (start + size, free - size)
        self._free[index : index + 1] = [rest] if rest[1] else []
        self.used += size
