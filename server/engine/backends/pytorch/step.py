"""What the PyTorch decoder needs of a step: its rows, and how they attend to the cache."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from server.engine.backends.pytorch.nested_widths import RowSubset, RowSubsets


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer's KV groups `groups`, each `[groups, slots, head_dim]`.

    `window` is the length of sliding attention in tokens, None for full attention; `scale` is the
    factor of attention scores.
    """

    layer: int
    groups: slice
    keys: Tensor
    values: Tensor
    window: int | None
    scale: float


@dataclass(frozen=True, slots=True)
class EndingRows:
    """The shallow rows of a step that end at a layer, and the step of all others.

    `rows` and `kept` are where those that end and the others stand in the step, int64 indices.
    `slots` and `rope` are those of the rows that end (see `Step`).
    """

    rows: Tensor
    slots: Tensor
    rope: dict[str | None, tuple[Tensor, Tensor]]
    kept: Tensor
    others: "Step"


class Step(Protocol):
    """Rows that go through the decoder together, one token each.

    `tokens` and `slots` (where the rows' keys and values go) are int64 `[rows]`; `rope` is cos and
    sin by kind, each `[rows, 1, 1, head_dim]`; `subsets` finds the rows of some variants.
    """

    tokens: Tensor
    slots: Tensor
    subsets: RowSubsets
    rope: dict[str | None, tuple[Tensor, Tensor]]

    def end_rows(self, layer: int) -> EndingRows | None:
        """Take out the rows that do not run through `layer`; None if there are none.

        Queries that are kept for evictions are zeros for them from there on.
        """
        ...

    def record_queries(self, queries: Tensor, rows: RowSubset, layer: int, groups: slice) -> None:
        """Keep queries for evictions that look at them.

        `queries` are those before rotation of KV groups `groups`,
        `[rows, groups, queries_per_group, head_dim]`.
        """
        ...

    def attend(self, queries: Tensor, rows: RowSubset, cached: LayerCache) -> Tensor:
        """Return softmax attention, `[rows, groups * queries_per_group * head_dim]`.

        `queries` are rotated, `[rows, groups, queries_per_group, head_dim]`.
        """
        ...
