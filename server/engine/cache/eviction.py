"""Drops tokens from a sequence's cache to keep its KV budget: after the prompt, then at intervals.

A prompt that does not fit as a whole is evicted from after every chunk, too. Layers through which
the latest token of the prompt did not run have no query to choose by: they keep the latest tokens.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from pruners.architecture import Shape
from pruners.kv import RECENT_QUERIES, CachedTokens, Eviction, StreamingLLM
from pruners.variant import VariantSpec
from server.engine.cache.page_bounds import PageBounds
from server.engine.cache.sequence_cache import SequenceCache

CosSinTables = Mapping[str | None, tuple[Tensor, Tensor]]
"""cos and sin by kind of rotary embedding, each `[positions, head_dim]`.

The first half of sin has its sign changed: rotating is `x * cos + roll(x, head_dim / 2) * sin`.
"""


class AttentionTables(Protocol):
    """What an eviction needs to know of a model's attention."""

    @property
    def shape(self) -> Shape:
        """Return the model's dimensions."""
        ...

    @property
    def rope(self) -> CosSinTables:
        """Return the rotary tables by kind."""
        ...

    @property
    def rope_kinds(self) -> list[str | None]:
        """Return the kind of rotary embedding of each layer."""
        ...

    @property
    def softmax_scale(self) -> float:
        """Return the factor of attention scores."""
        ...


def evict(
    cache: SequenceCache, tables: AttentionTables, variant: VariantSpec, prompt_read: bool
) -> None:
    """Drop tokens from a sequence's cache if its budget asks for it now.

    Call it after every step of the sequence; `prompt_read` says whether all of its prompt is read.
    A budget that selects pages drops nothing; it gets the bounds of its pages then.
    """
    eviction = cache.eviction
    if cache.selection is not None and prompt_read and cache.page_bounds is None:
        cache.page_bounds = PageBounds.of(cache.selection, cache.read()[0])
    if eviction is None or not (prompt_read or cache.evict_while_reading):
        return
    if prompt_read and cache.prompt_length is None:
        cache.prompt_length = cache.processed
    count = eviction.budget - eviction.interval
    written = cache.processed - (cache.prompt_length or 0)
    due = cache.prompt_length is None or written % eviction.interval == 0
    if due and cache.cached > count:
        # The rest of a prompt that did not fit is read into the room that it has now.
        room = eviction.budget if prompt_read else max(eviction.budget, cache.size)
        cache.retain(_slots_to_retain(cache, eviction, tables, variant, count), room)


def _slots_to_retain(
    cache: SequenceCache,
    eviction: Eviction,
    tables: AttentionTables,
    variant: VariantSpec,
    count: int,
) -> Tensor:
    """Return slots to retain, int64 `[layers, count]`.

    Layers of the same rotary kind and width that have the same queries are scored together.
    """
    shape = tables.shape
    # A scorer that looks at positions only is given empty keys, since reading them takes time.
    keys, values = cache.read() if eviction.scorer.needs_keys else cache.read(0)
    queries = _latest_queries(cache, shape)
    retained = torch.empty(shape.layers, count, dtype=torch.long)
    alike: dict[tuple[str | None, int, int], list[int]] = {}
    for index, kind in enumerate(tables.rope_kinds):
        known = 0 if cache.queries is None else cache.latest_queries(index)
        alike.setdefault((kind, variant.kv_groups[index], known), []).append(index)
    for (kind, groups, known), layers in alike.items():
        if groups == 0:  # the variant skips this attention: nothing is cached
            retained[layers] = torch.arange(cache.cached - count, cache.cached)
            continue
        tokens = CachedTokens(
            positions=cache.cached_positions()[layers].to(keys.device),
            keys=keys[layers, :groups],
            values=values[layers, :groups],
            queries=queries[layers, : groups * shape.queries_per_group, queries.shape[2] - known :],
            last_position=cache.processed - 1,
            scale=tables.softmax_scale,
            rope=partial(_cos_and_sin, tables, kind),
        )
        by_age = eviction.scorer.needs_queries and not known
        chosen = replace(eviction, scorer=StreamingLLM()) if by_age else eviction
        retained[layers] = chosen.select(tokens, count).cpu()
    return retained


def _latest_queries(cache: SequenceCache, shape: Shape) -> Tensor:
    """Return queries of the latest tokens, oldest first, `[layers, heads, recent, head_dim]`."""
    if cache.queries is None:
        return torch.empty(shape.layers, shape.heads, 0, shape.head_dim)
    recent = min(cache.processed, RECENT_QUERIES)
    latest = torch.arange(cache.processed - recent, cache.processed, device=cache.queries.device)
    queries = cache.queries[:, latest % RECENT_QUERIES]
    return queries.unflatten(2, (shape.heads, shape.head_dim)).transpose(1, 2)


def _cos_and_sin(
    tables: AttentionTables, kind: str | None, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of int `positions`, each `[positions, head_dim]`, with their true signs.

    Positions may lie behind the sequence's end.
    """
    cos, sin = (table[positions].clone() for table in tables.rope[kind])
    sin[:, : sin.shape[1] // 2].neg_()
    return cos, sin
