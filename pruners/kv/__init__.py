"""Which cached tokens to keep when a KV budget is full; one small scorer a module."""

from collections.abc import Callable

from pruners.kv.base import SINK_TOKENS, CachedTokens, KVScorer
from pruners.kv.eviction import RECENT_QUERIES, Eviction
from pruners.kv.expected_attention import ExpectedAttention
from pruners.kv.key_diff import KeyDiff
from pruners.kv.key_norm import KeyNorm
from pruners.kv.snap_kv import SnapKV
from pruners.kv.streaming_llm import StreamingLLM

KV_SCORERS: dict[str, Callable[[], KVScorer]] = {
    "streaming": StreamingLLM,
    "key-norm": KeyNorm,
    "key-diff": KeyDiff,
    "snap": SnapKV,
    "expected-attention": ExpectedAttention,
}


def make_eviction(budget: int, scorer: str = "streaming") -> Eviction:
    """Return the eviction with which the engine serves a KV budget of `budget` tokens.

    Raises `ValueError` if the budget is too small.
    """
    if scorer == "streaming":
        return Eviction(StreamingLLM(), budget, interval=max(1, budget // 32), recent=0)
    return Eviction(KV_SCORERS[scorer](), budget, interval=budget // 8, recent=budget // 8)


__all__ = [
    "KV_SCORERS",
    "RECENT_QUERIES",
    "SINK_TOKENS",
    "CachedTokens",
    "Eviction",
    "ExpectedAttention",
    "KVScorer",
    "KeyDiff",
    "KeyNorm",
    "SnapKV",
    "StreamingLLM",
    "make_eviction",
]
