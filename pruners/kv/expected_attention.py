"""Expected Attention: keep the tokens to which future queries are expected to attend."""

import torch
from torch import Tensor

from pruners.kv.base import CachedTokens, rotate


class ExpectedAttention:
    """Scores a token by `(E[attention] + floor / tokens) * ||v||_2`, the mean over all heads.

    The next `future` queries are taken as normally distributed, with the mean `mu` and covariance
    `S` of the queries so far, rotated by the average rotary matrix of their positions. Then the
    expected unnormalized attention to key `k` is
    `E[exp(scale * q^T k)] = exp(scale * mu^T k + scale^2 / 2 * k^T S k)`. It is Expected Attention
    (Devoto et al. 2025, arXiv 2510.00636).
    """

    needs_keys = True
    needs_queries = True

    def __init__(self, future: int = 512, floor: float = 1e-2) -> None:
        self._future = future
        self._floor = floor

    def __call__(self, cached: CachedTokens) -> Tensor:
        """Return one score for each cached token, `[rows, tokens]`."""
        queries = cached.queries.float()
        mean = queries.mean(2)
        centred = queries - mean[:, :, None]
        covariance = centred.transpose(2, 3) @ centred / queries.shape[2]
        if cached.rope is not None:
            start = cached.last_position + 1
            cos, sin = (t.mean(0) for t in cached.rope(torch.arange(start, start + self._future)))
            mean = rotate(mean, cos, sin)
            # With R the rotation, the covariance becomes R S R^T.
            covariance = rotate(rotate(covariance, cos, sin).transpose(2, 3), cos, sin)
        keys = cached.keys_by_query_head.float()
        linear = cached.scale * (keys @ mean[..., None])[..., 0]
        quadratic = cached.scale**2 / 2 * ((keys @ covariance) * keys).sum(-1)
        attention = (linear + quadratic).softmax(-1)
        groups = cached.values.shape[1]
        attention = attention.unflatten(1, (groups, -1)).mean(2)
        norms = cached.values.float().norm(dim=-1)
        return ((attention + self._floor / keys.shape[2]) * norms).mean(1)
