"""Which slots of the cache are free."""

GRAIN = 64  # slots; regions are multiples, so that growing by a token is rare


class Arena:
    """First-fit allocation of contiguous runs out of `capacity` slots."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // GRAIN * GRAIN
        self._free: list[tuple[int, int]] = [(0, self.capacity)]  # (start, size), sorted

    @property
    def used(self) -> int:
        """Slots that are held."""
        return self.capacity - sum(size for _, size in self._free)

    def allocate(self, size: int) -> int | None:
        """The start of a free run of `size` slots, or None if there is none."""
        for index, (start, free) in enumerate(self._free):
            if free >= size:
                rest = (start + size, free - size)
                self._free[index : index + 1] = [rest] if rest[1] else []
                return start
        return None

    def extend(self, end: int, size: int) -> bool:
        """Takes the `size` slots right behind `end` if they are free."""
        for index, (start, free) in enumerate(self._free):
            if start == end and free >= size:
                rest = (start + size, free - size)
                self._free[index : index + 1] = [rest] if rest[1] else []
                return True
        return False

    def release(self, start: int, size: int) -> None:
        """Gives a run back and joins it with its free neighbours."""
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
