"""The key/value cache: one arena of token slots, from which every sequence holds one region.

A region is contiguous, so attention reads a view of it and nothing is gathered. With a KV budget a
sequence keeps the tokens that its eviction chooses (see `eviction`) at the region's start, in any
order, each with its true position; what it does not hold is there for others.
"""

import torch
from torch import Tensor

from pruners.architecture import Shape
from pruners.kv import RECENT_QUERIES, Eviction
from server.engine.cache.arena import GRAIN, Arena
from server.engine.cache.prefix_cache import PrefixCache


class KVCache:
    """Keys and values of all sequences: two tensors `[layers, kv_groups, slots, head_dim]`.

    `spare` slots stand behind the arena's and belong to no sequence.
    """

    def __init__(
        self,
        shape: Shape,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        spare: int = 0,
    ) -> None:
        self.shape = shape
        self.arena = Arena(capacity)
        self.prefixes = PrefixCache()
        slots = self.arena.capacity + spare
        size = (shape.layers, shape.kv_groups, slots, shape.head_dim)
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

    def open(self, eviction: Eviction | None = None) -> "SequenceCache":
        """An empty cache for a sequence, without a budget unless there is an eviction."""
        return SequenceCache(self, eviction)


class SequenceCache:
    """One sequence's region. `seen` tokens were processed; `held` of them are still cached."""

    def __init__(self, cache: KVCache, eviction: Eviction | None) -> None:
        self._cache = cache
        self.eviction = eviction
        self.start = 0
        self.size = 0
        self.seen = 0
        self.held = 0
        self.prompt: int | None = None  # its length, once it was read
        self.crowded = False  # there is no room for the whole prompt
        # The position of each held token, `[layers, slots]`; None while they are 0, 1, 2, ...
        self.positions: Tensor | None = None
        # Of the latest tokens, not rotated: `[layers, QUERIES, heads * head_dim]`.
        self.queries: Tensor | None = None
        if eviction is not None and eviction.scorer.needs_queries:
            shape = cache.shape
            self.queries = torch.zeros(
                shape.layers,
                RECENT_QUERIES,
                shape.heads * shape.head_dim,
                dtype=torch.float32,
                device=cache.keys.device,
            )

    @property
    def whole(self) -> bool:
        """Whether no budget applies: every token is cached in its own slot."""
        return self.eviction is None

    def reserve(self, count: int) -> bool:
        """Makes room for the next `count` tokens; False if the arena has none."""
        needed = self.held + count
        if needed <= self.size:
            return True
        size = -(-needed // GRAIN) * GRAIN
        arena = self._cache.arena
        if self.size and arena.extend(self.start + self.size, size - self.size):
            self.size = size
            return True
        start = self._cache.allocate(size)
        if start is None:
            return False
        for tensor in self._cache.tensors():
            held = tensor[:, :, self.start : self.start + self.held]
            tensor[:, :, start : start + self.held] = held
        arena.release(self.start, self.size)
        self.start, self.size = start, size
        return True

    def slots(self, count: int) -> range:
        """Absolute slots of the next `count` tokens."""
        return range(self.start + self.held, self.start + self.held + count)

    def advance(self, count: int) -> None:
        """The next `count` tokens are being processed."""
        if self.positions is not None:
            new = torch.arange(self.seen, self.seen + count, dtype=torch.int32)
            self.positions[:, self.held : self.held + count] = new
        self.seen += count
        self.held += count

    def rewind(self, count: int) -> None:
        """Forgets the last tokens, which only a whole cache holds last."""
        self.seen -= count
        self.held -= count

    def known_positions(self) -> Tensor:
        """The true position of each held token of each layer, in slot order, `[layers, held]`."""
        if self.positions is None:
            return torch.arange(self.held).expand(self._cache.shape.layers, -1)
        return self.positions[:, : self.held]

    def read(self, tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Held keys and values, each `[layers, kv_groups, held, head_dim]` in floating point.

        Of the first `tokens` slots only, if that is given.
        """
        part = slice(self.start, self.start + (self.held if tokens is None else tokens))
        keys, values, *scales = (tensor[:, :, part] for tensor in self._cache.tensors())
        if scales:
            return keys * scales[0][..., None], values * scales[1][..., None]
        return keys, values

    def keep(self, kept: Tensor, room: int) -> None:
        """Drops all but these of the held tokens, `[layers, kept]`.

        Those behind the first `kept` slots move into the holes before, so that dropping a few of
        many moves a few. Slots beyond `room` are given back.
        """
        layers, count = kept.shape
        stays = torch.zeros(layers, self.held, dtype=torch.bool)
        stays.scatter_(1, kept, True)
        layer, hole = (~stays[:, :count]).nonzero(as_tuple=True)
        moved = stays[:, count:].nonzero(as_tuple=True)[1] + count  # of the same layers
        for tensor in self._cache.tensors():
            part = tensor[:, :, self.start : self.start + self.held]
            part[layer, :, hole] = part[layer, :, moved]
        known = self.known_positions()
        self.positions = torch.zeros(layers, room, dtype=torch.int32)
        self.positions[:, :count] = known[:, :count]
        self.positions[layer, hole] = known[layer, moved].int()
        self.held = count
        self._shrink(room)

    def trim(self, tokens: int) -> None:
        """Forgets all but the first tokens and gives the slots behind them back."""
        self.seen = self.held = tokens
        self._shrink(tokens)

    def copy_from(self, other: "SequenceCache", tokens: int) -> None:
        """Takes over the first tokens of another sequence; there is room for them."""
        for tensor in self._cache.tensors():
            mine = tensor[:, :, self.start : self.start + tokens]
            mine.copy_(tensor[:, :, other.start : other.start + tokens])
        self.seen = self.held = tokens

    def close(self) -> None:
        """Gives the region back. The sequence may be processed again from its first token."""
        self._cache.arena.release(self.start, self.size)
        self.size = self.seen = self.held = 0
        self.positions = self.prompt = None
        self.crowded = False

    def _shrink(self, tokens: int) -> None:
        size = min(self.size, -(-tokens // GRAIN) * GRAIN)
        self._cache.arena.release(self.start + size, self.size - size)
        self.size = size
