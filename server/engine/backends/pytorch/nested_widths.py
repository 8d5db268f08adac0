"""How rows of different variants share one pass over the weights.

Variants are nested: the units of a narrow one are the first units of a wider one. So the widths in
a batch divide a matrix into ranges. Each range is read once and applied to the rows that use it;
rows that skip the sub-block are left out.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pruners.variant import VariantSpec

Index = slice | Tensor
"""Rows of a tensor: a slice, or int64 indices `[rows]`."""
ALL_ROWS = slice(None)


@dataclass(frozen=True, slots=True)
class WidthRange:
    """Units `low..high` of a sub-block, and the variants whose rows use all of them."""

    low: int
    high: int
    variants: frozenset[VariantSpec]


@lru_cache(maxsize=4096)
def width_ranges(
    variants: frozenset[VariantSpec], layer: int, target: str
) -> tuple[WidthRange, ...]:
    """Return the ranges of one sub-block for the variants in a batch, the lowest first.

    `target` names the units, `ffn` or `kv_groups`. Ranges are empty if all variants skip the
    sub-block.
    """
    width = {variant: getattr(variant, target)[layer] for variant in variants}
    ranges, low = [], 0
    for high in sorted({w for w in width.values() if w}):
        ranges.append(WidthRange(low, high, frozenset(v for v in variants if width[v] >= high)))
        low = high
    return tuple(ranges)


@dataclass(frozen=True, slots=True)
class Span:
    """The rows `begin..end` of a `RowSubset` that belong to segment number `segment`."""

    segment: int
    begin: int
    end: int


class RowSubset:
    """Some of a batch's rows, made of whole segments in the batch's order."""

    def __init__(
        self, lengths: Sequence[int], members: Sequence[int], device: torch.device
    ) -> None:
        self._device = device
        self.spans: list[Span] = []
        begin = 0
        for segment in members:
            self.spans.append(Span(segment, begin, begin + lengths[segment]))
            begin += lengths[segment]
        self.count = begin

    def within(self, parent: "RowSubset") -> Index:
        """Return where these rows stand among `parent`'s: a slice if they are consecutive."""
        if self.count == parent.count:
            return ALL_ROWS
        at = {span.segment: span for span in parent.spans}
        ranges = [(at[span.segment].begin, at[span.segment].end) for span in self.spans]
        if all(left[1] == right[0] for left, right in itertools.pairwise(ranges)):
            return slice(ranges[0][0], ranges[-1][1])
        rows = torch.cat([torch.arange(begin, end) for begin, end in ranges])
        return rows.to(self._device)


class RowSubsets:
    """The row subsets of one batch by variants, each built once; indices are on `device`."""

    def __init__(
        self, lengths: Sequence[int], variants: Sequence[VariantSpec], device: torch.device
    ) -> None:
        self._device = device
        self.variants = frozenset(variants)
        self._lengths = lengths
        self._by_segment = variants
        self._rows: dict[frozenset[VariantSpec], RowSubset] = {}
        self._index: dict[tuple[frozenset[VariantSpec], frozenset[VariantSpec]], Index] = {}
        self.all = self.of(self.variants)

    def of(self, variants: frozenset[VariantSpec]) -> RowSubset:
        """Return the rows of these variants."""
        if variants not in self._rows:
            members = [i for i, v in enumerate(self._by_segment) if v in variants]
            self._rows[variants] = RowSubset(self._lengths, members, self._device)
        return self._rows[variants]

    def index(self, variants: frozenset[VariantSpec], parent: frozenset[VariantSpec]) -> Index:
        """Return where the rows of `variants` stand among the rows of `parent`."""
        key = (variants, parent)
        if key not in self._index:
            self._index[key] = self.of(variants).within(self.of(parent))
        return self._index[key]
