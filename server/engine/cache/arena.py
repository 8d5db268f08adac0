"""Which slots of the cache are free, and for which of them memory was taken."""

from collections.abc import Callable

GRANULARITY = 64
"""Slots; regions are multiples of it, so that they seldom have to grow."""


def grant_all(slots: int) -> bool:
    """Let memory be taken, however many slots it is for."""
    return True


class Arena:
    """First-fit allocation of contiguous runs out of `capacity` slots.

    Memory is taken for a slot when it is first handed out. `held` counts the slots that have some:
    those in use, and free ones that were in use before. A function `may_take` is asked before
    memory is taken for so many slots.

    Only the engine's thread allocates and releases; `used` and `held` may be read by any thread.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // GRANULARITY * GRANULARITY
        self.used = 0
        self.held = 0
        self._held = bytearray(self.capacity // GRANULARITY)  # 1 where memory was taken
        self._free: list[tuple[int, int]] = [(0, self.capacity)]  # (start, size), sorted

    def allocate(self, size: int, may_take: Callable[[int], bool] = grant_all) -> int | None:
        """Return the start of a free run of `size` slots, or None if there is none."""
        for index, (start, free) in enumerate(self._free):
            if free >= size and self._may_take(start, size, may_take):
                self._take(index, size)
                return start
        return None

    def extend(self, end: int, size: int, may_take: Callable[[int], bool] = grant_all) -> bool:
        """Take the `size` slots right behind `end`; return False if they are not free."""
        for index, (start, free) in enumerate(self._free):
            if start == end and free >= size and self._may_take(start, size, may_take):
                self._take(index, size)
                return True
        return False

    def release(self, start: int, size: int) -> None:
        """Give a run back and join it with its free neighbours. Its memory is held."""
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

    def forget_free(self) -> list[tuple[int, int]]:
        """Return the free runs that have memory, which they no longer count as having."""
        found: list[tuple[int, int]] = []
        for start, size in self._free:
            for granule in range(-(-start // GRANULARITY), (start + size) // GRANULARITY):
                if not self._held[granule]:
                    continue
                self._held[granule] = 0
                first = granule * GRANULARITY
                if found and sum(found[-1]) == first:
                    found[-1] = (found[-1][0], found[-1][1] + GRANULARITY)
                else:
                    found.append((first, GRANULARITY))
        self.held -= sum(size for _, size in found)
        return found

    def emptied(self) -> "Arena":
        """Return an arena of the same memory in which every slot is free."""
        fresh = Arena(self.capacity)
        fresh.held, fresh._held = self.held, self._held
        return fresh

    def _may_take(self, start: int, size: int, may_take: Callable[[int], bool]) -> bool:
        new = self._new(start, size)
        return new == 0 or may_take(new)

    def _new(self, start: int, size: int) -> int:
        """Return for how many slots of a run memory would have to be taken."""
        first, last = _granules(start, size)
        return GRANULARITY * self._held.count(0, first, last)

    def _take(self, index: int, size: int) -> None:
        """Take the first `size` slots of a free run."""
        start, free = self._free[index]
        rest = (start + size, free - size)
        self._free[index : index + 1] = [rest] if rest[1] else []
        self.used += size
        self.held += self._new(start, size)
        first, last = _granules(start, size)
        self._held[first:last] = b"\1" * (last - first)


def _granules(start: int, size: int) -> tuple[int, int]:
    """Return the first granule of a run, and the one behind its last."""
    return start // GRANULARITY, -(-(start + size) // GRANULARITY)
