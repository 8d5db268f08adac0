"""What queries to come will look at, if they are like those so far."""

import torch
from torch import Tensor

from pruners.kv.base import CachedTokens, rotate


class ExpectedAttention:
    """Attention under a normal distribution of the next `future` queries, times `||v||`.

    `E[exp(q^T k)] = exp(mu^T k + k^T Sigma k / 2)` with the mean and the covariance of the queries
    so far, turned by the rotary embedding averaged over the positions to come: Expected Attention
    (Devoto et al. 2025, arXiv 2510.00636). The mean over all heads of a layer.
    """

    needs_keys = True
    needs_queries = True

    def __init__(self, future: int = 512, floor: float = 1e-2) -> None:
        self._future = future
        self._floor = floor

    def __call__(self, seen: CachedTokens) -> Tensor:
        queries = seen.queries.float()
        mean = queries.mean(2)
        centred = queries - mean[:, :, None]
        spread = centred.transpose(2, 3) @ centred / queries.shape[2]
        if seen.rope is not None:
            start = seen.position + 1
            cos, sin = (t.mean(0) for t in seen.rope(torch.arange(start, start + self._future)))
            mean = rotate(mean, cos, sin)
            # The covariance is turned from both sides.
            spread = rotate(rotate(spread, cos, sin).transpose(2, 3), cos, sin)
        keys = seen.keys_by_query_head.float()
        first = seen.scale * (keys @ mean[..., None])[..., 0]
        second = seen.scale**2 / 2 * ((keys @ spread) * keys).sum(-1)
        attention = (first + second).softmax(-1)
        groups = seen.values.shape[1]
        attention = attention.unflatten(1, (groups, -1)).mean(2)
        norms = seen.values.float().norm(dim=-1)
        return ((attention + self._floor / keys.shape[2]) * norms).mean(1)
