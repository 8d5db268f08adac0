"""Makes room in a sequence's cache, as its eviction says: after the prompt, then at intervals.

A prompt for which there is no room as a whole is evicted from after every chunk, too.
"""

from functools import partial

import torch
from torch import Tensor

from pruners.kv import RECENT_QUERIES, CachedTokens, Eviction
from pruners.variant import VariantSpec
from server.engine.backends.native.packed_weights import PackedWeights
from server.engine.backends.pytorch.weights import BaseWeights
from server.engine.cache.kv_cache import SequenceCache


def make_room(
    cache: SequenceCache,
    weights: BaseWeights | PackedWeights,
    variant: VariantSpec,
    prompt_read: bool,
) -> None:
    """Call it after every step of a sequence."""
    eviction = cache.eviction
    if eviction is None or not (prompt_read or cache.crowded):
        return
    if prompt_read and cache.prompt is None:
        cache.prompt = cache.seen
    keep = eviction.budget - eviction.interval
    due = cache.prompt is None or (cache.seen - cache.prompt) % eviction.interval == 0
    if due and cache.held > keep:
        # What is left of a crowded prompt comes into the same room.
        room = eviction.budget if prompt_read else max(eviction.budget, cache.size)
        cache.keep(_chosen(cache, eviction, weights, variant, keep), room)


def _chosen(
    cache: SequenceCache,
    eviction: Eviction,
    weights: BaseWeights | PackedWeights,
    variant: VariantSpec,
    keep: int,
) -> Tensor:
    """Tokens to keep, `[layers, keep]`. Layers of the same kind and width are scored together."""
    shape = weights.shape
    # Nothing of a large tensor is touched for those who only ask how old a token is.
    keys, values = cache.read() if eviction.scorer.needs_keys else cache.read(0)
    queries = _latest(cache, shape.kv_groups, shape.queries_per_group, shape.head_dim)
    kept = torch.empty(shape.layers, keep, dtype=torch.long)
    alike: dict[tuple[str | None, int], list[int]] = {}
    for index, kind in enumerate(weights.rope_kinds):
        alike.setdefault((kind, variant.kv_groups[index]), []).append(index)
    for (kind, groups), layers in alike.items():
        if groups == 0:  # nothing is cached there
            kept[layers] = torch.arange(cache.held - keep, cache.held)
            continue
        seen = CachedTokens(
            positions=cache.known_positions()[layers].to(keys.device),
            keys=keys[layers, :groups],
            values=values[layers, :groups],
            queries=queries[layers, : groups * shape.queries_per_group],
            position=cache.seen - 1,
            scale=weights.softmax_scale,
            rope=partial(_tables, weights, kind),
        )
        kept[layers] = eviction.select(seen, keep).cpu()
    return kept


def _latest(cache: SequenceCache, groups: int, per_group: int, dim: int) -> Tensor:
    """Queries of the latest tokens, oldest first, `[layers, heads, recent, head_dim]`."""
    heads = groups * per_group
    if cache.queries is None:
        return torch.empty(cache.read()[0].shape[0], heads, 0, dim)
    recent = min(cache.seen, RECENT_QUERIES)
    at = torch.arange(cache.seen - recent, cache.seen, device=cache.queries.device) % RECENT_QUERIES
    return cache.queries[:, at].unflatten(2, (heads, dim)).transpose(1, 2)


def _tables(
    weights: BaseWeights | PackedWeights, kind: str | None, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """cos and sin of positions, some of them to come."""
    cos, sin = (table[positions].clone() for table in weights.rope[kind])
    sin[:, : sin.shape[1] // 2].neg_()  # the engine's tables hold that half with its sign
    return cos, sin
