"""The input and the protocol of scorers of cached tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SINK_TOKENS = 4
"""The number of first tokens that are always kept, as attention sinks (Xiao et al. 2023, arXiv
2309.17453)."""

RopeTables = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps integer positions `[positions]` to cos and sin, each `[positions, rotated features]`."""


@dataclass(frozen=True, slots=True)
class CachedTokens:
    """The cached tokens of one layer, and the latest queries.

    Tokens are in any order; `positions`, int64 `[rows, tokens]`, are their positions in the text.
    `keys`, after the rotary embedding, and `values` are `[rows, kv_groups, tokens, head_dim]`.
    `queries`, before the rotary embedding, are `[rows, heads, recent, head_dim]`: those of the last
    `recent` tokens, of which the last is at `last_position`. Attention weights are
    `softmax(scale * q k^T)`. `rope` is None if positions are embedded.
    """

    positions: Tensor
    keys: Tensor
    values: Tensor
    queries: Tensor
    last_position: int
    scale: float
    rope: RopeTables | None

    @property
    def keys_by_query_head(self) -> Tensor:
        """Return the keys repeated for each query head, `[rows, heads, tokens, head_dim]`."""
        return self.keys.repeat_interleave(self.queries.shape[1] // self.keys.shape[1], dim=1)


class KVScorer(Protocol):
    """Scores the cached tokens of one layer; tokens of higher scores are kept longer.

    A token has one score for all heads of a layer, since memory is only freed if all heads drop it.
    """

    @property
    def needs_keys(self) -> bool:
        """Return whether the scorer reads `keys` and `values`; if not, they may be empty."""
        ...

    @property
    def needs_queries(self) -> bool:
        """Return whether the scorer reads `queries`."""
        ...

    def __call__(self, cached: CachedTokens) -> Tensor:
        """Return one score for each cached token, `[rows, tokens]`."""
        ...


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to `x` `[..., positions, head_dim]`.

    `cos` and `sin` are `[positions, rotated]`: of that many first features, `i` and
    `i + rotated / 2` form a pair, as in `transformers`; the others stay. The result has the dtype
    of `x`.
    """
    rotated = cos.shape[-1]
    first, second = x[..., :rotated].chunk(2, dim=-1)
    turned = x[..., :rotated] * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(x.dtype), x[..., rotated:]], dim=-1)
