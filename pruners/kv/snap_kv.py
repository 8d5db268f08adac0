"""What the last queries looked at."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.kv.base import CachedTokens, rotate

_POOL = 5


class SnapKV:
    """Attention of the last `window` queries, pooled over neighbours, summed over all heads.

    SnapKV (Li et al. 2024, arXiv 2404.14469), with one choice for all heads of a layer. The window
    itself is kept.
    """

    needs_keys = True
    needs_queries = True

    def __init__(self, window: int = 64) -> None:
        self._window = window

    def __call__(self, seen: CachedTokens) -> Tensor:
        tokens = seen.keys.shape[2]
        window = min(self._window, seen.queries.shape[2], tokens)
        queries = seen.queries[:, :, -window:].float()
        first = seen.position + 1 - window
        if seen.rope is not None:
            queries = rotate(queries, *seen.rope(torch.arange(first, first + window)))
        scores = seen.scale * queries @ seen.keys_by_query_head.float().transpose(2, 3)
        now = torch.arange(first, first + window, device=scores.device)
        # The window's own tokens see only what is before them.
        later = seen.positions[:, None, None, :] > now[:, None]
        attention = scores.masked_fill(later, -torch.inf).softmax(-1).sum((1, 2))
        order = seen.positions.argsort(1)
        attention = attention.gather(1, order)[:, None]  # neighbours stand side by side
        pooled = F.avg_pool1d(attention, _POOL, stride=1, padding=_POOL // 2)[:, 0]
        later_better = torch.arange(1, window + 1, device=pooled.device)  # no ties among them
        pooled[:, -window:] = pooled.amax(1, keepdim=True) + later_better
        return torch.empty_like(pooled).scatter_(1, order, pooled)
