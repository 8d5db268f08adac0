"""The key/value cache: one storage of token slots, from which every sequence holds one region."""

import torch

from pruners.architecture import Shape
from pruners.kv import KVBudget
from server.engine.cache.arena import GRANULARITY, grant_all
from server.engine.cache.memory_allowance import MemoryAllowance
from server.engine.cache.prefix_cache import PrefixCache
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.cache.storage import KVStorage


class KVCache(KVStorage):
    """A storage whose free slots are used for the prefixes of finished sequences.

    With an `allowance` it takes memory only while the host has some to spare, and drops prefixes
    instead. What must grow is given what it needs.
    """

    def __init__(
        self,
        shape: Shape,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        spare: int = 0,
    ) -> None:
        super().__init__(shape, capacity, dtype, device, spare)
        self.prefixes = PrefixCache()
        self.allowance: MemoryAllowance | None = None

    def allocate(self, size: int, must_grow: bool = False) -> int | None:
        """Return the start of a free run of `size` slots, or None if there is none.

        Drops prefixes, the least recently used first, until there is such a run.
        """
        may_take = grant_all if must_grow else self._may_take
        while (start := self.arena.allocate(size, may_take)) is None:
            if not self.prefixes.drop_oldest():
                return None
        return start

    def extend(self, end: int, size: int, must_grow: bool = False) -> bool:
        """Take the `size` slots right behind `end`; return False if they are not free."""
        return self.arena.extend(end, size, grant_all if must_grow else self._may_take)

    def clear(self) -> None:
        """Forget all sequences and prefixes, in whatever state they are, and begin anew.

        Caches that were opened before must not be used any more; closing them does no harm.
        """
        self.prefixes = PrefixCache()
        self.arena = self.arena.emptied()

    def open(self, budget: KVBudget | None = None) -> SequenceCache:
        """Return an empty cache for one sequence, with a KV budget or without."""
        return SequenceCache(self, budget)

    def attainable(self) -> int:
        """Return how many slots there can be now: the capacity, unless the host lacks memory.

        Called from any thread.
        """
        spare = None if self.allowance is None else self.allowance.available()
        if spare is None:
            return self.arena.capacity
        slots = self.arena.held + int(spare // self.slot_bytes)
        return min(self.arena.capacity, max(slots, GRANULARITY))

    def _may_take(self, slots: int) -> bool:
        return self.allowance is None or self.allowance.take(slots * self.slot_bytes)
