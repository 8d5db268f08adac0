"""What the last queries looked at."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.kv.base import Seen, rotate

_POOL = 5


class SnapKV:
    """Attention of the last `window` queries, pooled over neighbours, summed over all heads.

    SnapKV (Li et al. 2024, arXiv 2404.14469), with one choice for all heads of a layer. The window
    itself is kept.
    """

    looks_at_queries = True

    def __init__(self, window: int = 64) -> None:
        self._window = window

    def __call__(self, seen: Seen) -> Tensor:
        tokens = seen.keys.shape[2]
        window = min(self._window, seen.queries.shape[2], tokens)
        queries = seen.queries[:, :, -window:].float()
        if seen.rope is not None:
            stop = seen.position + 1
            queries = rotate(queries, *seen.rope(torch.arange(stop - window, stop)))
        scores = seen.scale * queries @ seen.repeated_keys.float().transpose(2, 3)
        at = torch.arange(tokens, device=scores.device)
        later = at > at[-window:, None]  # the window's own tokens see only what is before them
        attention = scores.masked_fill(later, -torch.inf).softmax(-1).sum((1, 2))
        pooled = F.avg_pool1d(attention[:, None], _POOL, stride=1, padding=_POOL // 2)[:, 0]
        pooled[:, -window:] = pooled.amax(1, keepdim=True) + 1
        return pooled
