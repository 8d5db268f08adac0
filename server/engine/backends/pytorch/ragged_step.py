"""A step over segments: prompt chunks and decoded tokens, each with its own sequence's cache."""

from copy import copy

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.kv import RECENT_QUERIES
from server.engine.backends.base import Segment, check_rows
from server.engine.backends.pytorch.nested_widths import RowSubset, RowSubsets
from server.engine.backends.pytorch.step import EndingRows, LayerCache
from server.engine.backends.pytorch.weights import PyTorchWeights


class RaggedStep:
    """What one pass needs to know of its segments, computed once and read by every layer.

    Each segment's `cache` is advanced. Raises `IndexError` for a token or a position that the
    model does not have.
    """

    def __init__(self, segments: list[Segment], weights: PyTorchWeights) -> None:
        device = weights.device
        self._segments = segments
        lengths = [len(s.tokens) for s in segments]
        tokens = [t for s in segments for t in s.tokens]
        last_position = max(s.cache.processed + len(s.tokens) for s in segments) - 1
        check_rows(tokens, last_position, weights.shape.vocab, weights.rope)
        self.tokens = torch.tensor(tokens, device=device)
        self.subsets = RowSubsets(lengths, [s.variant for s in segments], device)
        starts = [s.cache.processed for s in segments]
        ranges = [torch.arange(at, at + n) for at, n in zip(starts, lengths, strict=True)]
        self._positions = torch.cat(ranges)
        slots = [slot for s in segments for slot in s.cache.slots(len(s.tokens))]
        self.slots = torch.tensor(slots, device=device)
        for segment in segments:
            segment.cache.advance(len(segment.tokens))
        self.rope = weights.rope_at(self._positions.to(device))
        self._masks: dict[tuple[int, int | None, int | None], Tensor | None] = {}
        self._device = device
        self._ends: Tensor | None = None  # the first layer without the row, or -1
        if any(segment.shallow for segment in segments):
            marks = [s.shallow or [False] * len(s.tokens) for s in segments]
            pairs = zip(segments, marks, strict=True)
            ends = [s.depth if mark else -1 for s, own in pairs for mark in own]
            self._ends = torch.tensor(ends)

    def end_rows(self, layer: int) -> EndingRows | None:
        """Take out the rows that do not run through `layer`; None if there are none.

        Queries that are kept for evictions are zeros for them from there on.
        """
        if self._ends is None or not bool((ending := self._ends == layer).any()):
            return None
        for span in self.subsets.all.spans:
            cache = self._segments[span.segment].cache
            if cache.queries is not None:
                at = self._positions[span.begin : span.end][ending[span.begin : span.end]]
                at = at[at >= cache.processed - RECENT_QUERIES].to(cache.queries.device)
                cache.queries[layer:, at % RECENT_QUERIES] = 0
        rows = ending.nonzero()[:, 0].to(self._device)
        rope = {kind: (cos[rows], sin[rows]) for kind, (cos, sin) in self.rope.items()}
        kept = (~ending).nonzero()[:, 0]
        return EndingRows(rows, self.slots[rows], rope, kept.to(self._device), self._of_rows(kept))

    def _of_rows(self, kept: Tensor) -> "RaggedStep":
        """Return the step of some rows only, int64 indices in rising order."""
        step = copy(self)
        spans = self.subsets.all.spans
        counts = [int(((kept >= s.begin) & (kept < s.end)).sum()) for s in spans]
        step._segments = [s for s, n in zip(self._segments, counts, strict=True) if n]
        variants = [segment.variant for segment in step._segments]
        step.subsets = RowSubsets([n for n in counts if n], variants, self._device)
        step._positions = self._positions[kept]
        step._ends = None if self._ends is None else self._ends[kept]
        rows = kept.to(self._device)
        step.tokens, step.slots = self.tokens[rows], self.slots[rows]
        step.rope = {kind: (cos[rows], sin[rows]) for kind, (cos, sin) in self.rope.items()}
        step._masks = {}
        return step

    def record_queries(self, queries: Tensor, rows: RowSubset, layer: int, groups: slice) -> None:
        """Keep the latest queries of sequences whose eviction looks at them.

        `queries` are those before rotation, `[rows, groups, queries_per_group, head_dim]`.
        """
        for span in rows.spans:
            kept = self._segments[span.segment].cache.queries
            if kept is None:
                continue
            every = self.subsets.all.spans[span.segment]
            at = self._positions[every.begin : every.end]
            at = at[at >= self._segments[span.segment].cache.processed - RECENT_QUERIES]
            latest = queries[span.end - len(at) : span.end].flatten(1)
            width = queries.shape[2] * queries.shape[3]
            at = at.to(kept.device) % RECENT_QUERIES
            kept[layer][at, groups.start * width : groups.stop * width] = latest.to(kept.dtype)

    def attend(self, queries: Tensor, rows: RowSubset, cached: LayerCache) -> Tensor:
        """Return softmax attention, `[rows, groups * queries_per_group * head_dim]`.

        `queries` are rotated, `[rows, groups, queries_per_group, head_dim]`. Segments are computed
        one after the other.
        """
        mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
        for span in rows.spans:
            cache = self._segments[span.segment].cache
            region = slice(cache.start, cache.start + cache.cached)
            mask = self._mask(span.segment, cached.window, cached.layer)
            # [groups, queries_per_group, new tokens, head_dim]
            q = queries[span.begin : span.end].transpose(0, 1).transpose(1, 2)
            k, v = cached.keys[None, :, region], cached.values[None, :, region]
            if span.end - span.begin == 1 and mask is None:
                # The query heads of a group stand as rows of one head, so that no key is repeated.
                flat = q.flatten(1, 2)[None]
            else:
                flat = q.flatten(0, 1)[None]
            y = F.scaled_dot_product_attention(
                flat,
                k,
                v,
                attn_mask=mask,
                scale=cached.scale,
                enable_gqa=flat.shape[1] != k.shape[1],
            )[0]
            y = y.reshape(q.shape).transpose(1, 2).transpose(0, 1)
            mixed[span.begin : span.end] = y
        return mixed.flatten(1)

    def _mask(self, segment: int, window: int | None, layer: int) -> Tensor | None:
        """Return which cached tokens each new token of a segment may see.

        It is bool `[new tokens, cached]`, or None if all are visible.
        """
        cache, span = self._segments[segment].cache, self.subsets.all.spans[segment]
        key = (segment, window, None if cache.positions is None else layer)
        if key not in self._masks:
            queries = self._positions[span.begin : span.end]
            if window is None and len(queries) == 1:
                return None
            distance = queries[:, None] - cache.cached_positions()[layer][None]
            visible = distance >= 0
            if window is not None:
                visible &= distance < window
            self._masks[key] = None if bool(visible.all()) else visible.to(self._device)
        return self._masks[key]
