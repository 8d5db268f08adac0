"""Keys unlike the others are worth a place."""

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from pruners.kv.base import CachedTokens


class KeyDiff:
    """`-cos(k, mean of the normalised keys)`, the mean over heads.

    KeyDiff (Park et al. 2025, arXiv 2504.15364); it needs no attention weights.
    """

    needs_keys = True
    needs_queries = False

    def __call__(self, seen: CachedTokens) -> Tensor:
        keys = seen.keys.float()
        anchor = normalize(keys, dim=-1).mean(2, keepdim=True)
        return -cosine_similarity(keys, anchor, dim=-1).mean(1)
