"""When cached tokens are dropped, and which."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.kv.base import SINK_TOKENS, CachedTokens, KVScorer

RECENT_QUERIES = 256
"""Of the latest tokens, kept for scorers that look at queries."""


@dataclass(frozen=True, slots=True)
class Eviction:
    """At most `budget` cached tokens a sequence, the best of them by `scorer`.

    The first `sinks` and the last `recent` tokens always stay. The prompt is read in full; then
    `interval` tokens at a time go on, and room for them is made before they come, so that the
    budget is never exceeded.
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

    def select(self, seen: CachedTokens, keep: int) -> Tensor:
        """Which of the cached tokens stay, by their places in the cache, rising, `[rows, keep]`."""
        always = (seen.positions < self.sinks) | (seen.positions > seen.position - self.recent)
        scores = self.scorer(seen).masked_fill(always, torch.inf)
        return scores.topk(keep, dim=1).indices.sort(dim=1).values
