"""A step over segments: prompt chunks and decoded tokens, each with its own sequence's cache."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.kv import RECENT_QUERIES
from server.engine.backends.base import Segment, check_rows
from server.engine.backends.pytorch.nested_widths import RowSubset, RowSubsets
from server.engine.backends.pytorch.step import LayerCache
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

    def record_queries(self, queries: Tensor, rows: RowSubset, layer: int, groups: slice) -> None:
        """Keep the latest queries of sequences whose eviction looks at them.

        `queries` are those before rotation, `[rows, groups, queries_per_group, head_dim]`.
        """
        for span in rows.spans:
            kept = self._segments[span.segment].cache.queries
            if kept is None:
                continue
            end = self.subsets.all.spans[span.segment].end
            begin = max(span.begin, span.end - RECENT_QUERIES)
            at = self._positions[end - (span.end - begin) : end].to(kept.device) % RECENT_QUERIES
            latest = queries[begin : span.end].flatten(1)
            width = queries.shape[2] * queries.shape[3]
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
