"""Which cached tokens to keep when a KV budget is full: scorers, one small class a file."""

from collections.abc import Callable

from pruners.kv.base import SINKS, KVScorer, Seen
from pruners.kv.expected_attention import ExpectedAttention
from pruners.kv.key_diff import KeyDiff
from pruners.kv.key_norm import KeyNorm
from pruners.kv.snap import SnapKV
from pruners.kv.streaming import Streaming

KV_SCORERS: dict[str, Callable[[], KVScorer]] = {
    "streaming": Streaming,
    "key-norm": KeyNorm,
    "key-diff": KeyDiff,
    "snap": SnapKV,
    "expected-attention": ExpectedAttention,
}

__all__ = [
    "KV_SCORERS",
    "SINKS",
    "ExpectedAttention",
    "KVScorer",
    "KeyDiff",
    "KeyNorm",
    "Seen",
    "SnapKV",
    "Streaming",
]
