"""What a scorer of cached tokens sees, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SINK_TOKENS = 4
"""First tokens that every budget keeps; attention rests on them (arXiv 2309.17453)."""

RopeTables = Callable[[Tensor], tuple[Tensor, Tensor]]
"""cos and sin, each `[positions, head_dim]`, of integer positions."""


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """One layer's cache and the queries that were last asked of it.

    Cached tokens come in any order; `positions`, `[rows, tokens]`, says where each stands in the
    text. `keys` (rotated) and `values` are `[rows, groups, tokens, dim]`, `queries` (not rotated)
    `[rows, heads, recent, dim]` those of the last `recent` tokens, the latest of which stands at
    `position`. `rope` is None where positions are embedded. Attention is
    `softmax(scale * q k^T)`.
    """

    positions: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    position: int
    scale: float
    rope: RopeTables | None

    @property
    def keys_by_query_head(self) -> Tensor:
        """Each query head's keys, `[rows, heads, tokens, dim]`."""
        return self.keys.repeat_interleave(self.queries.shape[1] // self.keys.shape[1], dim=1)


class KVScorer(Protocol):
    """Scores cached tokens; higher is kept longer.

    One score a token for all heads of a layer, `[rows, tokens]`: what is dropped by single heads
    frees no memory.
    """

    @property
    def needs_keys(self) -> bool:
        """Whether it has to be given `keys` and `values`; if not, it also works without."""
        ...

    @property
    def needs_queries(self) -> bool:
        """Whether `queries` have to be kept for it."""
        ...

    def __call__(self, seen: CachedTokens) -> Tensor: ...


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x`, `[..., positions, dim]`, as `transformers` pairs the features."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
