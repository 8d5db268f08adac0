"""SnapKV: keep the tokens to which the last queries attend."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.kv.base import CachedTokens, rotate

_POOL_WIDTH = 5


class SnapKV:
    """Scores a token by the attention that the last `window` queries pay to it.

    The attention weights are summed over these queries and all heads, then averaged over each token
    and its neighbours, 5 positions in all. The tokens of the window itself are kept. It is SnapKV
    (Li et al. 2024, arXiv 2404.14469) with one choice for all heads of a layer.
    """

    needs_keys = True
    needs_queries = True

    def __init__(self, window: int = 64) -> None:
        self._window = window

    def __call__(self, cached: CachedTokens) -> Tensor:
        """Return one score for each cached token, `[rows, tokens]`."""
        tokens = cached.keys.shape[2]
        window = min(self._window, cached.queries.shape[2], tokens)
        queries = cached.queries[:, :, -window:].float()
        first = cached.last_position + 1 - window
        if cached.rope is not None:
            queries = rotate(queries, *cached.rope(torch.arange(first, first + window)))
        scores = cached.scale * queries @ cached.keys_by_query_head.float().transpose(2, 3)
        now = torch.arange(first, first + window, device=scores.device)
        # Within the window, a query attends only to earlier tokens.
        later = cached.positions[:, None, None, :] > now[:, None]
        attention = scores.masked_fill(later, -torch.inf).softmax(-1).sum((1, 2))
        order = cached.positions.argsort(1)
        attention = attention.gather(1, order)[:, None]  # sorted by position for the pooling
        pooled = F.avg_pool1d(attention, _POOL_WIDTH, stride=1, padding=_POOL_WIDTH // 2)[:, 0]
        by_position = torch.arange(1, window + 1, device=pooled.device)  # no ties within the window
        pooled[:, -window:] = pooled.amax(1, keepdim=True) + by_position
        return torch.empty_like(pooled).scatter_(1, order, pooled)
