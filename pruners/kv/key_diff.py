"""KeyDiff: keep keys that differ from the others."""

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from pruners.kv.base import CachedTokens


class KeyDiff:
    """Scores a token by `-cos(k, m)`, the mean over heads, with `m` the mean of `k / ||k||_2`.

    It is KeyDiff (Park et al. 2025, arXiv 2504.15364). It needs no attention weights.
    """

    needs_keys = True
    needs_queries = False

    def __call__(self, cached: CachedTokens) -> Tensor:
        """Return one score for each cached token, `[rows, tokens]`."""
        keys = cached.keys.float()
        anchor = normalize(keys, dim=-1).mean(2, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1).mean(1)
