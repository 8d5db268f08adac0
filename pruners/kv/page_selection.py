"""Page-wise selection: each query attends to the pages of cached tokens that may matter to it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.kv.base import SINK_TOKENS


@dataclass(frozen=True, slots=True)
class PageSelection:
    """Lets each written token attend to at most `budget` cached tokens; none is forgotten.

    Cached tokens form pages of `page` tokens in the order of the text. A page's bound is the
    highest score that a key between the elementwise minimum and maximum of its keys could have:
    `sum_i max(q_i * min_i, q_i * max_i)`. The query heads of a KV group share their pages: those of
    the highest softmax of bounds, the mean over these heads. The pages of the first `sinks` tokens
    are always taken, and those of the last `recent`, which have no bound and no part in the
    softmax. It is Quest (Tang et al. 2024, arXiv 2406.10774) by KV groups. Raises `ValueError` for
    a budget that is too small.
    """

    budget: int
    page: int = 16
    sinks: int = SINK_TOKENS
    recent: int = 16

    def __post_init__(self) -> None:
        least = (-(-self.sinks // self.page) + -(-self.recent // self.page) + 1) * self.page
        if self.page < 1 or self.budget < least:
            raise ValueError(
                f"a budget of {self.budget} tokens holds no page besides the first and the last; "
                f"with pages of {self.page} give at least {least}"
            )

    def select(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """Return which tokens each query attends to, bool `[rows, kv_groups, new, tokens]`.

        `queries` `[rows, heads, new, head_dim]` are those of the last `new` tokens, `keys`
        `[rows, kv_groups, tokens, head_dim]` all keys up to the last of them, both after the rotary
        embedding. Attention weights are `softmax(scale * q k^T)`.
        """
        tokens, new = keys.shape[2], queries.shape[2]
        pages = -(-tokens // self.page)
        room = pages * self.page - tokens
        lowest, highest = (
            F.pad(keys, (0, 0, 0, room), value=end).unflatten(2, (pages, self.page))
            for end in (torch.inf, -torch.inf)
        )
        grouped = queries.unflatten(1, (keys.shape[1], -1))  # [rows, groups, heads of it, new, dim]
        bounds = scale * (
            torch.einsum("bghnd,bgpd->bghnp", grouped.clamp(min=0), highest.amax(3))
            + torch.einsum("bghnd,bgpd->bghnp", grouped.clamp(max=0), lowest.amin(3))
        )
        first = torch.arange(pages, device=keys.device) * self.page
        now = torch.arange(tokens - new, tokens, device=keys.device)[:, None]
        latest = first + self.page > now + 1 - self.recent  # and later ones
        scores = bounds.masked_fill(latest, -torch.inf).softmax(-1).nan_to_num().mean(2)
        scores = scores.masked_fill(latest | (first < self.sinks), torch.inf)
        scores = scores.masked_fill(first > now, -torch.inf)
        chosen = scores.topk(min(self.budget // self.page, pages), -1).indices
        taken = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)
        return taken.repeat_interleave(self.page, -1)[..., :tokens] & (
            torch.arange(tokens, device=keys.device) <= now
        )
