"""Keys of a small norm draw attention."""

from torch import Tensor

from pruners.kv.base import CachedTokens


class KeyNorm:
    """`-||k||`, the mean over heads (Devoto et al. 2024, arXiv 2406.11430)."""

    needs_keys = True
    needs_queries = False

    def __call__(self, seen: CachedTokens) -> Tensor:
        return -seen.keys.float().norm(dim=-1).mean(1)
