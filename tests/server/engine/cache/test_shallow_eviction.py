"""Evictions from caches of prompts that were not read in full, against plain loops."""

import pytest
import torch

from pruners.kv import RECENT_QUERIES, Eviction, ExpectedAttention, SnapKV
from pruners.variant import base_spec
from server.engine.backends.base import Segment
from server.engine.cache.eviction import evict
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.reading_depth import FULL_DEPTH
from tests.support.driving import runner_of, weights_of
from tests.support.tiny import tiny_model

WEIGHTS = weights_of(tiny_model())
BASE = base_spec(WEIGHTS.shape)
DEPTH, PROMPT, LAST = 1, 90, 6
SHALLOW = bytes(FULL_DEPTH if i < 4 or i >= PROMPT - LAST else DEPTH for i in range(PROMPT))
BUDGET = 40


def read(depths: bytes, tokens: int, eviction: Eviction) -> SequenceCache:
    """Return a cache into which tokens were read; layers have no queries of shallow tokens."""
    decoder = runner_of(WEIGHTS).decoder
    cache = decoder.cache.open(eviction)
    assert cache.reserve(tokens)
    cache.depths = depths
    decoder.forward([Segment([(7 * i) % 384 for i in range(tokens)], cache, BASE)])
    for place, depth in enumerate(depths[:tokens]):
        if depth != FULL_DEPTH:
            cache.queries[depth:, place % RECENT_QUERIES] = torch.nan
    return cache


def kept_by_snap(cache: SequenceCache, layer: int, window: int, eviction: Eviction) -> list[int]:
    """Return what SnapKV keeps of one layer by the last `window` queries, on plain lists."""
    keys, _ = cache.read()
    shape, total = WEIGHTS.shape, [0.0] * cache.processed
    cos, sin = WEIGHTS.rope[WEIGHTS.rope_kinds[layer]]
    for place in range(cache.processed - window, cache.processed):
        queries = cache.queries[layer, place % RECENT_QUERIES].view(shape.heads, shape.head_dim)
        for head, query in enumerate(queries):
            turned = query * cos[place] + query.roll(shape.head_dim // 2) * sin[place]
            group = keys[layer, head // shape.queries_per_group, : place + 1]
            for seen, weight in enumerate((WEIGHTS.softmax_scale * group @ turned).softmax(0)):
                total[seen] += float(weight)
    pooled = [sum(total[max(0, i - 2) : i + 3]) / 5 for i in range(len(total))]
    last = cache.processed - max(window, eviction.recent)
    ranked = sorted(range(eviction.sinks, last), key=lambda i: -pooled[i])
    always = {*range(eviction.sinks), *range(last, cache.processed)}
    return sorted([*always, *ranked[: eviction.budget - eviction.interval - len(always)]])


def test_layers_choose_by_the_queries_of_tokens_that_ran_through_them():
    eviction = Eviction(SnapKV(window=16), BUDGET, interval=8, sinks=2, recent=3)
    cache = read(SHALLOW, PROMPT, eviction)
    windows = [16] * DEPTH + [LAST] * (WEIGHTS.shape.layers - DEPTH)
    expected = [kept_by_snap(cache, i, window, eviction) for i, window in enumerate(windows)]
    evict(cache, WEIGHTS, BASE, prompt_read=True)
    assert cache.cached_positions().sort(1).values.tolist() == expected
    cache.close()


def test_written_tokens_are_asked_too_once_there_are_some():
    eviction = Eviction(SnapKV(window=16), BUDGET, interval=8, sinks=2, recent=3)
    cache = read(SHALLOW, PROMPT + 4, eviction)
    assert [cache.latest_queries(layer) for layer in (0, 1, 2)] == [PROMPT + 4, LAST + 4, LAST + 4]
    cache.prompt_length = PROMPT + 4
    expected = kept_by_snap(cache, 1, LAST + 4, eviction)
    evict(cache, WEIGHTS, BASE, prompt_read=True)
    assert cache.cached_positions()[1].sort().values.tolist() == expected
    cache.close()


@pytest.mark.parametrize("scorer", [SnapKV(window=16), ExpectedAttention()])
def test_a_layer_without_any_query_keeps_the_first_and_the_latest_tokens(scorer):
    eviction = Eviction(scorer, BUDGET, interval=8, sinks=2, recent=3)
    cache = read(SHALLOW, 60, eviction)
    cache.evict_while_reading = True
    evict(cache, WEIGHTS, BASE, prompt_read=False)
    found = cache.cached_positions().sort(1).values.tolist()
    assert found[DEPTH:] == [[0, 1, *range(30, 60)]] * (WEIGHTS.shape.layers - DEPTH)
    assert found[0] != found[DEPTH]
    cache.close()


def test_queries_are_counted_as_by_hand():
    cache = read(b"", 10, Eviction(SnapKV(), BUDGET))
    for depths in (b"", SHALLOW, bytes([1]) * 90, bytes([2, 1, 255] * 30), bytes([255] * 300)):
        for processed in (0, 1, 5, 88, 90, 93, 299, 400):
            cache.depths, cache.processed = depths, processed
            for layer in range(3):
                runs = [i >= len(depths) or depths[i] > layer for i in range(processed)]
                last = max((i for i, one in enumerate(runs) if not one), default=-1)
                expected = min(processed - 1 - last, RECENT_QUERIES)
                assert cache.latest_queries(layer) == expected
