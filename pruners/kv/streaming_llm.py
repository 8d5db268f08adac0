"""StreamingLLM: keep the first tokens and the latest."""

from torch import Tensor

from pruners.kv.base import CachedTokens


class StreamingLLM:
    """Scores a token by its position: the latest tokens are kept.

    Together with the sinks, which every `Eviction` keeps, it is StreamingLLM (Xiao et al. 2023,
    arXiv 2309.17453), except that keys keep their positions in the text.
    """

    needs_keys = False
    needs_queries = False

    def __call__(self, cached: CachedTokens) -> Tensor:
        """Return one score for each cached token, `[rows, tokens]`."""
        return cached.positions.float()
