"""When cached tokens are dropped, and which ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.kv.base import SINK_TOKENS, CachedTokens, KVScorer

RECENT_QUERIES = 256
"""The number of latest queries that are stored for scorers that read queries."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """Keeps at most `budget` cached tokens of a sequence, those with the highest scores.

    The first `sinks` and the last `recent` tokens are always kept. The whole prompt is processed
    first. Then, before every `interval` tokens, room for them is made, so that the cache never
    exceeds the budget while the answer is generated. Raises `ValueError` for a budget that is too
    small.
    """

    scorer: KVScorer
    budget: int
    interval: int = 16
    sinks: int = SINK_TOKENS
    recent: int = 16

    def __post_init__(self) -> None:
        if self.interval < 1 or self.sinks < 0 or self.recent < 0:
            raise ValueError("an eviction needs an interval of at least 1, sinks and recent of 0")
        if self.budget <= self.sinks + self.recent + self.interval:
            raise ValueError(
                f"KV budget of {self.budget} tokens is not above its {self.sinks} sinks, "
                f"{self.recent} recent tokens and {self.interval} new ones"
            )

    def select(self, cached: CachedTokens, keep: int) -> Tensor:
        """Return the indices of the `keep` tokens to keep, rising, int64 `[rows, keep]`."""
        always = (cached.positions < self.sinks) | (
            cached.positions > cached.last_position - self.recent
        )
        scores = self.scorer(cached).masked_fill(always, torch.inf)
        return scores.topk(keep, dim=1).indices.sort(dim=1).values
