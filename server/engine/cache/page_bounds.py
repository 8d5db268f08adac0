"""Which keys the pages of a sequence's cache may hold, for budgets that select pages."""

import torch
from torch import Tensor

from pruners.kv import PageSelection

_SPARE_PAGES = 64  # so that the bounds of an answer seldom have to move


class PageBounds:
    """The elementwise maximum and minimum of the keys in each page of one sequence.

    `bounds` is `[layers, kv_groups, pages, 2, head_dim]`, in the dtype of the cache; pages behind
    the cached tokens are not filled in. The decoder keeps it up to date with each token.
    """

    def __init__(self, selection: PageSelection, bounds: Tensor) -> None:
        self.selection = selection
        self.bounds = bounds

    @classmethod
    def of(cls, selection: PageSelection, keys: Tensor) -> "PageBounds":
        """Return the bounds of keys `[layers, kv_groups, tokens, head_dim]`, in text order."""
        pages = -(-keys.shape[2] // selection.page)
        layers, groups, _, dim = keys.shape
        bounds = keys.new_empty(layers, groups, pages + _SPARE_PAGES, 2, dim)
        for page, part in enumerate(keys.split(selection.page, dim=2)):
            bounds[:, :, page, 0] = part.amax(2)
            bounds[:, :, page, 1] = part.amin(2)
        return cls(selection, bounds)

    def reserve(self, tokens: int) -> None:
        """Make room for the pages of a sequence of so many tokens."""
        needed, now = -(-tokens // self.selection.page), self.bounds.shape[2]
        if needed > now:
            room = self.bounds.new_empty(
                *self.bounds.shape[:2], needed - now + _SPARE_PAGES, *self.bounds.shape[3:]
            )
            self.bounds = torch.cat([self.bounds, room], dim=2)
