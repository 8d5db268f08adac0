"""Which cached tokens to keep, or to attend to, under a KV budget; one small scorer a module."""

from collections.abc import Callable

from pruners.kv.base import SINK_TOKENS, CachedTokens, KVScorer
from pruners.kv.eviction import RECENT_QUERIES, Eviction
from pruners.kv.expected_attention import ExpectedAttention
from pruners.kv.key_diff import KeyDiff
from pruners.kv.key_norm import KeyNorm
from pruners.kv.page_selection import PageSelection
from pruners.kv.snap_kv import SnapKV
from pruners.kv.streaming_llm import StreamingLLM

KV_SCORERS: dict[str, Callable[[], KVScorer]] = {
    "streaming": StreamingLLM,
    "key-norm": KeyNorm,
    "key-diff": KeyDiff,
    "snap": SnapKV,
    "expected-attention": ExpectedAttention,
}
"""What evicts, by the name of its scorer."""

QUEST = "quest"
"""The name of page-wise selection, which evicts nothing."""

KV_METHODS = (*KV_SCORERS, QUEST)
"""The methods by which the engine serves a KV budget."""

MEASURED_KV_METHOD = "streaming"
"""The method that an artefact's table has the losses of KV budgets for."""

KVBudget = Eviction | PageSelection
"""How the engine keeps a KV budget."""


def make_kv_budget(budget: int, method: str = "streaming") -> KVBudget:
    """Return how the engine keeps a KV budget of `budget` tokens by one of `KV_METHODS`.

    Raises `ValueError` if the budget is too small.
    """
    return PageSelection(budget) if method == QUEST else make_eviction(budget, method)


def make_eviction(budget: int, scorer: str = "streaming") -> Eviction:
    """Return the eviction with which the engine serves a KV budget of `budget` tokens.

    Raises `ValueError` if the budget is too small.
    """
    if scorer == "streaming":
        return Eviction(StreamingLLM(), budget, interval=max(1, budget // 32), recent=0)
    return Eviction(KV_SCORERS[scorer](), budget, interval=budget // 8, recent=budget // 8)


__all__ = [
    "KV_METHODS",
    "KV_SCORERS",
    "MEASURED_KV_METHOD",
    "QUEST",
    "RECENT_QUERIES",
    "SINK_TOKENS",
    "CachedTokens",
    "Eviction",
    "ExpectedAttention",
    "KVBudget",
    "KVScorer",
    "KeyDiff",
    "KeyNorm",
    "PageSelection",
    "SnapKV",
    "StreamingLLM",
    "make_eviction",
    "make_kv_budget",
]
