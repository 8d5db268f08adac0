"""A step over segments: prompt chunks and decoded tokens, each with its own sequence's cache."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.kv import RECENT_QUERIES
from server.engine.backends.pytorch.nested_widths import Rows, RowSets
from server.engine.backends.pytorch.step import View
from server.engine.backends.pytorch.weights import BaseWeights
from server.engine.segment import Segment, check_rows


class RaggedStep:
    """What one pass knows about its batch, computed once and read by every layer.

    Each segment's `cache` is advanced.
    """

    def __init__(self, segments: list[Segment], weights: BaseWeights) -> None:
        device = weights.device
        self._segments = segments
        lengths = [len(s.tokens) for s in segments]
        tokens = [t for s in segments for t in s.tokens]
        furthest = max(s.cache.seen + len(s.tokens) for s in segments) - 1
        check_rows(tokens, furthest, weights.shape.vocab, weights.rope)
        self.tokens = torch.tensor(tokens, device=device)
        self.sets = RowSets(lengths, [s.variant for s in segments], device)
        ranges = [torch.arange(s.cache.seen, s.cache.seen + len(s.tokens)) for s in segments]
        self._positions = torch.cat(ranges)
        slots = [slot for s in segments for slot in s.cache.slots(len(s.tokens))]
        self.slots = torch.tensor(slots, device=device)
        for segment in segments:
            segment.cache.advance(len(segment.tokens))
        self.rope = weights.rope_at(self._positions.to(device))
        self._masks: dict[tuple[int, int | None, int | None], Tensor | None] = {}
        self._device = device

    def note(self, queries: Tensor, rows: Rows, layer: int, groups: slice) -> None:
        """The latest queries of sequences whose eviction looks at them."""
        for span in rows.spans:
            kept = self._segments[span.segment].cache.queries
            if kept is None:
                continue
            end = self.sets.all.spans[span.segment].end
            begin = max(span.begin, span.end - RECENT_QUERIES)
            at = self._positions[end - (span.end - begin) : end].to(kept.device) % RECENT_QUERIES
            found = queries[begin : span.end].flatten(1)
            width = queries.shape[2] * queries.shape[3]
            kept[layer][at, groups.start * width : groups.stop * width] = found.to(kept.dtype)

    def mix(self, queries: Tensor, rows: Rows, view: View) -> Tensor:
        """Segment by segment."""
        mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
        for span in rows.spans:
            cache = self._segments[span.segment].cache
            held = slice(cache.start, cache.start + cache.held)
            mask = self._mask(span.segment, view.window, view.layer)
            q = queries[span.begin : span.end].transpose(0, 1).transpose(1, 2)  # g, heads, new, d
            k, v = view.keys[None, :, held], view.values[None, :, held]
            if span.end - span.begin == 1 and mask is None:
                # A group's query heads stand as rows of one head: nothing is repeated for them.
                flat = q.flatten(1, 2)[None]
            else:
                flat = q.flatten(0, 1)[None]
            y = F.scaled_dot_product_attention(
                flat,
                k,
                v,
                attn_mask=mask,
                scale=view.scale,
                enable_gqa=flat.shape[1] != k.shape[1],
            )[0]
            y = y.reshape(q.shape).transpose(1, 2).transpose(0, 1)
            mixed[span.begin : span.end] = y
        return mixed.flatten(1)

    def _mask(self, segment: int, window: int | None, layer: int) -> Tensor | None:
        """Which cached tokens each new token of a segment may see, `[new, held]`; None is all."""
        cache, at = self._segments[segment].cache, self.sets.all.spans[segment]
        key = (segment, window, None if cache.positions is None else layer)
        if key not in self._masks:
            queries = self._positions[at.begin : at.end]
            if window is None and len(queries) == 1:
                return None
            cached = cache.known_positions()[layer]
            distance = queries[:, None] - cached[None]
            visible = distance >= 0
            if window is not None:
                visible &= distance < window
            self._masks[key] = None if bool(visible.all()) else visible.to(self._device)
        return self._masks[key]
