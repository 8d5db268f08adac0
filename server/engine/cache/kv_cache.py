"""The key/value cache: one storage of token slots, from which every sequence holds one region."""

import torch

from pruners.architecture import Shape
from pruners.kv import KVBudget
from server.engine.cache.prefix_cache import PrefixCache
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.cache.storage import KVStorage


class KVCache(KVStorage):
    """A storage whose free slots are used for the prefixes of finished sequences."""

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

    def allocate(self, size: int) -> int | None:
        """Return the start of a free run of `size` slots, or None if there is none.

        Drops prefixes, the least recently used first, until there is such a run.
        """
        while (start := self.arena.allocate(size)) is None:
            if not self.prefixes.drop_oldest():
                return None
        return start

    def open(self, budget: KVBudget | None = None) -> SequenceCache:
        """Return an empty cache for one sequence, with a KV budget or without."""
        return SequenceCache(self, budget)
