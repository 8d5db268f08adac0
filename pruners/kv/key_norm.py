"""Key norms: keys of small norm get more attention."""

from torch import Tensor

from pruners.kv.base import CachedTokens


class KeyNorm:
    """Scores a token by `-||k||_2`, the mean over heads (Devoto et al. 2024, arXiv 2406.11430)."""

    needs_keys = True
    needs_queries = False

    def __call__(self, cached: CachedTokens) -> Tensor:
        """Return one score for each cached token, `[rows, tokens]`."""
        return -cached.keys.float().norm(dim=-1).mean(1)
