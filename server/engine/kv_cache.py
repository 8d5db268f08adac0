"""The key/value cache: one arena of token slots, from which every sequence holds one region.

A region is contiguous, so attention reads a view of it and nothing is gathered. With a KV budget a
sequence keeps its first `sinks` tokens and the most recent ones; older tokens are overwritten in
place (StreamingLLM, arXiv:2309.17453, but with true RoPE positions), so its region stays small and
what it does not hold is there for others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.architecture import Shape
from pruners.kv import SINKS
from server.engine.prefix_cache import PrefixCache

_GRAIN = 64  # slots; regions are multiples, so that growing by a token is rare


@dataclass(frozen=True, slots=True)
class KVBudget:
    """At most `tokens` cached tokens: the first `sinks` and the most recent others."""

    tokens: int
    sinks: int = SINKS

    def __post_init__(self) -> None:
        if not 0 <= self.sinks < self.tokens:
            raise ValueError(f"KV budget of {self.tokens} tokens cannot keep {self.sinks} sinks")


class Arena:
    """First-fit allocation of contiguous runs out of `capacity` slots."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // _GRAIN * _GRAIN
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


class KVCache:
    """Keys and values of all sequences: two tensors `[layers, kv_groups, slots, head_dim]`."""

    def __init__(
        self, shape: Shape, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.arena = Arena(capacity)
        self.prefixes = PrefixCache()
        size = (shape.layers, shape.kv_groups, self.arena.capacity, shape.head_dim)
        # Untouched pages of an empty tensor cost no memory until they are written.
        self.keys = torch.empty(size, dtype=dtype, device=device)
        self.values = torch.empty(size, dtype=dtype, device=device)
        # In int8 each head of each token has a scale of its own.
        self.key_scales = torch.empty(size[:3]) if dtype == torch.int8 else None
        self.value_scales = torch.empty(size[:3]) if dtype == torch.int8 else None

    def tensors(self) -> list[Tensor]:
        """What is kept of each token, `[layers, kv_groups, slots, ...]`."""
        scales = (self.key_scales, self.value_scales)
        return [self.keys, self.values, *(t for t in scales if t is not None)]

    def allocate(self, size: int) -> int | None:
        """The start of a free run of slots, at the cost of kept prefixes; None if there is none."""
        while (start := self.arena.allocate(size)) is None:
            if not self.prefixes.drop_oldest():
                return None
        return start

    def open(self, chunk: int, budget: KVBudget | None) -> "SequenceCache":
        """An empty cache for a sequence whose prompt is read at most `chunk` tokens at a time."""
        return SequenceCache(self, chunk, budget)


class SequenceCache:
    """One sequence's region. `seen` tokens were processed; `held` of them are still cached."""

    def __init__(self, cache: KVCache, chunk: int, budget: KVBudget | None) -> None:
        self._cache = cache
        self._budget = budget
        # While the prompt is read, a chunk's first token must still see a full window behind it.
        self._ring = None if budget is None else budget.tokens + chunk
        self.start = 0
        self.size = 0
        self.seen = 0

    @property
    def held(self) -> int:
        """Cached tokens."""
        return self.seen if self._ring is None else min(self.seen, self._ring)

    def reserve(self, count: int) -> bool:
        """Makes room for the next `count` tokens; False if the arena has none."""
        needed = self.seen + count if self._ring is None else min(self.seen + count, self._ring)
        if needed <= self.size:
            return True
        size = -(-needed // _GRAIN) * _GRAIN
        arena = self._cache.arena
        if self.size and arena.extend(self.start + self.size, size - self.size):
            self.size = size
            return True
        start = self._cache.allocate(size)
        if start is None:
            return False
        self._move(torch.arange(self.held), start, torch.arange(self.held))
        arena.release(self.start, self.size)
        self.start, self.size = start, size
        return True

    @property
    def whole(self) -> bool:
        """Whether every token is cached in its own slot: no budget applies."""
        return self._budget is None

    def trim(self, tokens: int) -> None:
        """Forgets all but the first tokens and gives the slots behind them back."""
        self.seen = tokens
        size = min(self.size, -(-tokens // _GRAIN) * _GRAIN)
        self._cache.arena.release(self.start + size, self.size - size)
        self.size = size

    def copy_from(self, other: "SequenceCache", tokens: int) -> None:
        """Takes over the first tokens of another sequence; there is room for them."""
        for tensor in self._cache.tensors():
            mine = tensor[:, :, self.start : self.start + tokens]
            mine.copy_(tensor[:, :, other.start : other.start + tokens])
        self.seen = tokens

    def slots(self, count: int) -> Tensor:
        """Absolute slots `[count]` of the next `count` tokens."""
        return self._slot_of(torch.arange(self.seen, self.seen + count)) + self.start

    def order(self) -> Tensor | None:
        """The position of each cached token, or None while slot after slot holds the next one."""
        in_order = self._ring is None or self.seen <= self._ring
        return None if in_order else self.positions()

    def positions(self) -> Tensor:
        """True position of each cached token, in slot order, `[held]`."""
        index = torch.arange(self.held)
        if self._ring is None or self.seen <= self._ring:
            return index
        assert self._budget is not None
        period = self._ring - self._budget.sinks
        latest = index + (self.seen - 1 - index) // period * period
        return torch.where(index < self._budget.sinks, index, latest)

    def finish_prompt(self) -> None:
        """Drops what the budget does not keep and gives the freed slots back."""
        if self._budget is None or self._ring is None or self._ring == self._budget.tokens:
            return
        tokens, sinks = self._budget.tokens, self._budget.sinks
        if self.seen > tokens:
            kept = torch.cat(
                [torch.arange(sinks), torch.arange(self.seen - tokens + sinks, self.seen)]
            )
            source = self._slot_of(kept)
            self._ring = tokens
            self._move(source, self.start, self._slot_of(kept))
        self._ring = tokens
        size = min(self.size, -(-tokens // _GRAIN) * _GRAIN)
        self._cache.arena.release(self.start + size, self.size - size)
        self.size = size

    def close(self) -> None:
        """Gives the region back. The sequence may be processed again from its first token."""
        self._cache.arena.release(self.start, self.size)
        self.size = self.seen = 0

    def _slot_of(self, positions: Tensor) -> Tensor:
        if self._ring is None:
            return positions
        assert self._budget is not None
        sinks = self._budget.sinks
        wrapped = sinks + (positions - sinks) % (self._ring - sinks)
        return torch.where(positions < self._ring, positions, wrapped)

    def _move(self, source: Tensor, start: int, target: Tensor) -> None:
        if len(source) == 0:
            return
        for tensor in self._cache.tensors():
            tensor[:, :, target + start] = tensor[:, :, source + self.start]
