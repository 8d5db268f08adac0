"""What the decoder asks of a step: which rows there are, and how they look at the cache."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from server.engine.backends.pytorch.nested_widths import Rows, RowSets


@dataclass(frozen=True, slots=True)
class View:
    """What one layer's KV groups `groups` have cached, each `[groups, slots, head_dim]`."""

    layer: int
    groups: slice
    keys: Tensor
    values: Tensor
    window: int | None
    scale: float


class Step(Protocol):
    """Rows that go through the decoder together, one token each.

    `slots` are where their keys and values go, `rope` cos and sin by kind, `[rows, 1, 1, dim]`.
    """

    tokens: Tensor
    slots: Tensor
    sets: RowSets
    rope: dict[str | None, tuple[Tensor, Tensor]]

    def note(self, queries: Tensor, rows: Rows, layer: int, groups: slice) -> None:
        """Keeps queries, not rotated, for evictions that look at them."""
        ...

    def mix(self, queries: Tensor, rows: Rows, view: View) -> Tensor:
        """Softmax attention of `[rows, groups, queries, dim]`: `[rows, groups * queries * dim]`."""
        ...
