"""Sinks and a recent window."""

from torch import Tensor

from pruners.kv.base import CachedTokens


class StreamingLLM:
    """The later the better (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453).

    The sinks are kept by every eviction. Keys keep their true rotary positions.
    """

    needs_keys = False
    needs_queries = False

    def __call__(self, seen: CachedTokens) -> Tensor:
        return seen.positions.float()
