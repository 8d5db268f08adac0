"""One sequence's region of the key/value cache.

A region is contiguous, so attention reads a view of it and nothing is gathered. With a KV budget a
sequence keeps the tokens that its eviction chooses (see `eviction`) at the region's start, in any
order, each with its true position; the slots that it gives back serve other sequences.
"""

import torch
from torch import Tensor

from pruners.kv import RECENT_QUERIES, Eviction, KVBudget, PageSelection
from server.engine.cache.arena import GRANULARITY
from server.engine.cache.page_bounds import PageBounds
from server.engine.cache.storage import KVStorage


class SequenceCache:
    """One sequence's region: `size` slots from `start` on.

    `processed` is the number of tokens that went through the decoder; `cached` of them still have
    their keys and values here. `prompt_length` is set once the prompt was read. With
    `evict_while_reading` the whole prompt does not fit, and tokens are evicted after every chunk.
    `positions` is the true position of each cached token, int32 `[layers, slots]`; None while
    they are 0, 1, 2, ... `queries` are those of the latest tokens before rotation, fp32
    `[layers, RECENT_QUERIES, heads * head_dim]`, for an eviction that looks at them. `depths` is
    how deep each token of the prompt is read, one byte a token as `ReadingDepths` has it; tokens
    behind its end run through all layers. With a `selection` nothing is evicted; `page_bounds` are
    of its pages, once the prompt was read, and written tokens attend to those that it takes.
    """

    def __init__(self, storage: KVStorage, budget: KVBudget | None) -> None:
        self._storage, self._arena = storage, storage.arena
        self.eviction = eviction = budget if isinstance(budget, Eviction) else None
        self.selection = budget if isinstance(budget, PageSelection) else None
        self.page_bounds: PageBounds | None = None
        self.start = 0
        self.size = 0
        self.processed = 0
        self.cached = 0
        self.prompt_length: int | None = None
        self.evict_while_reading = False
        self.positions: Tensor | None = None
        self.queries: Tensor | None = None
        self.depths = b""
        if eviction is not None and eviction.scorer.needs_queries:
            shape = storage.shape
            self.queries = torch.zeros(
                shape.layers,
                RECENT_QUERIES,
                shape.heads * shape.head_dim,
                dtype=torch.float32,
                device=storage.keys.device,
            )

    @property
    def complete(self) -> bool:
        """Return whether no budget applies: every token is cached, in the order of positions."""
        return self.eviction is None and self.selection is None

    def reserve(self, count: int, must_grow: bool = False) -> bool:
        """Make room for the next `count` tokens; return False if there is none.

        While the host lacks memory there is only what the cache holds, unless it `must_grow`.
        """
        needed = self.cached + count
        if needed <= self.size or self._grow(_rounded_up(needed), must_grow=False):
            return True
        return must_grow and self._grow(_rounded_up(needed), must_grow=True)

    def _grow(self, size: int, must_grow: bool) -> bool:
        """Extend the region to `size` slots, or move it to a larger one."""
        end = self.start + self.size
        if self.size and self._storage.extend(end, size - self.size, must_grow):
            self.size = size
            return True
        start = self._storage.allocate(size, must_grow)
        if start is None:
            return False
        for tensor in self._storage.tensors():
            old = tensor[:, :, self.start : self.start + self.cached]
            tensor[:, :, start : start + self.cached] = old
        self._arena.release(self.start, self.size)
        self.start, self.size = start, size
        return True

    def slots(self, count: int) -> range:
        """Return the storage's slots for the next `count` tokens."""
        return range(self.start + self.cached, self.start + self.cached + count)

    def advance(self, count: int) -> None:
        """Count the next `count` tokens as processed; a decoder is about to write them."""
        if self.positions is not None:
            new = torch.arange(self.processed, self.processed + count, dtype=torch.int32)
            self.positions[:, self.cached : self.cached + count] = new
        self.processed += count
        self.cached += count

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens. Only a complete cache has them in the last slots."""
        self.processed -= count
        self.cached -= count

    def latest_queries(self, layer: int) -> int:
        """Return how many of the latest tokens ran through a layer, so that it has their queries.

        It has no more than `RECENT_QUERIES`.
        """
        recent = min(self.processed, RECENT_QUERIES)
        depths = self.depths[: self.processed]
        behind = self.processed - len(depths)
        for depth in reversed(depths):
            if behind >= recent or depth <= layer:
                break
            behind += 1
        return min(behind, recent)

    def cached_positions(self) -> Tensor:
        """Return the position of each cached token in slot order, int `[layers, cached]`."""
        if self.positions is None:
            return torch.arange(self.cached).expand(self._storage.shape.layers, -1)
        return self.positions[:, : self.cached]

    def read(self, tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Return cached keys and values, each `[layers, kv_groups, tokens, head_dim]`, as floats.

        `tokens` limits them to the first slots; by default all cached tokens are returned.
        """
        part = slice(self.start, self.start + (self.cached if tokens is None else tokens))
        keys, values, *scales = (tensor[:, :, part] for tensor in self._storage.tensors())
        if scales:
            return keys * scales[0][..., None], values * scales[1][..., None]
        return keys, values

    def retain(self, slots: Tensor, room: int) -> None:
        """Drop all cached tokens but those in `slots`, int64 `[layers, count]`.

        Retained tokens behind the first `count` slots move into the free slots before, so the cost
        grows with the number of dropped tokens. Slots beyond `room` are given back.
        """
        layers, count = slots.shape
        stays = torch.zeros(layers, self.cached, dtype=torch.bool)
        stays.scatter_(1, slots, True)
        layer, free = (~stays[:, :count]).nonzero(as_tuple=True)
        moved = stays[:, count:].nonzero(as_tuple=True)[1] + count  # of the same layers
        for tensor in self._storage.tensors():
            region = tensor[:, :, self.start : self.start + self.cached]
            region[layer, :, free] = region[layer, :, moved]
        before = self.cached_positions()
        self.positions = torch.zeros(layers, room, dtype=torch.int32)
        self.positions[:, :count] = before[:, :count]
        self.positions[layer, free] = before[layer, moved].int()
        self.cached = count
        self._shrink(room)

    def trim(self, tokens: int) -> None:
        """Forget all but the first `tokens` tokens and give the slots behind them back."""
        self.processed = self.cached = tokens
        self._shrink(tokens)

    def copy_from(self, other: "SequenceCache", tokens: int) -> None:
        """Copy the first `tokens` tokens of another sequence. Room for them must be reserved."""
        for tensor in self._storage.tensors():
            target = tensor[:, :, self.start : self.start + tokens]
            target.copy_(tensor[:, :, other.start : other.start + tokens])
        self.processed = self.cached = tokens

    def close(self) -> None:
        """Give the region back. The sequence may be processed again from its first token."""
        self._arena.release(self.start, self.size)
        self.size = self.processed = self.cached = 0
        self.positions = self.prompt_length = self.page_bounds = None
        self.evict_while_reading = False

    def _shrink(self, tokens: int) -> None:
        size = min(self.size, _rounded_up(tokens))
        self._arena.release(self.start + size, self.size - size)
        self.size = size


def _rounded_up(slots: int) -> int:
    return -(-slots // GRANULARITY) * GRANULARITY
