"""The forward pass: a ragged batch of segments, each at its own position and of its own variant.

A segment is a prompt chunk or one decoded token; both take the same path. The pass reads each
weight once, whatever variants the batch mixes (see `ladder`).
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.kv import QUERIES
from pruners.variant import Block, VariantSpec
from server.engine.block import Entries, Site, run_block
from server.engine.corrections import OwnParts
from server.engine.kv_cache import KVCache, SequenceCache
from server.engine.ladder import Rows, RowSets, Rung, ladder
from server.engine.weights import BaseWeights, LayerWeights


@dataclass(slots=True)
class Segment:
    """Consecutive tokens of one sequence to process now. Room in `cache` is reserved already."""

    tokens: list[int]
    cache: SequenceCache
    variant: VariantSpec


class _Step:
    """What one pass knows about its batch, computed once and read by every layer."""

    def __init__(self, segments: list[Segment], weights: BaseWeights) -> None:
        self.segments = segments
        lengths = [len(s.tokens) for s in segments]
        self.sets = RowSets(lengths, [s.variant for s in segments])
        ranges = [torch.arange(s.cache.seen, s.cache.seen + len(s.tokens)) for s in segments]
        self.positions = torch.cat(ranges)
        slots = [slot for s in segments for slot in s.cache.slots(len(s.tokens))]
        self.slots = torch.tensor(slots, device=weights.device)
        for segment in segments:
            segment.cache.advance(len(segment.tokens))
        positions = self.positions.to(weights.device)
        self.rope = {
            kind: (cos[positions, None, None], sin[positions, None, None])
            for kind, (cos, sin) in weights.rope.items()
        }
        self._masks: dict[tuple[int, int | None, int | None], Tensor | None] = {}
        self._device = weights.device

    def mask(self, segment: int, rows: slice, window: int | None, layer: int) -> Tensor | None:
        """Which cached tokens each new token of a segment may see, `[new, held]`; None is all."""
        cache = self.segments[segment].cache
        key = (segment, window, None if cache.positions is None else layer)
        if key not in self._masks:
            queries = self.positions[rows]
            if window is None and len(queries) == 1:
                return None
            cached = cache.positions_of(layer)
            distance = queries[:, None] - cached[None]
            visible = distance >= 0
            if window is not None:
                visible &= distance < window
            self._masks[key] = None if bool(visible.all()) else visible.to(self._device)
        return self._masks[key]


class Decoder:
    """Runs segments through the base or its variants."""

    def __init__(self, weights: BaseWeights, cache: KVCache, own: OwnParts | None = None) -> None:
        self.weights = weights
        self.cache = cache
        self._own = own or {}

    @torch.inference_mode()
    def forward(self, segments: list[Segment]) -> Tensor:
        """Hidden states `[rows, hidden]` after the final norm; keys and values are cached.

        Rows follow the segments' tokens in order. Each segment's `cache` is advanced.
        """
        weights = self.weights
        step = _Step(segments, weights)
        tokens = torch.tensor([t for s in segments for t in s.tokens], device=weights.device)
        x = F.embedding(tokens, weights.embed)
        if weights.embed_scale != 1.0:
            x = x * weights.embed_scale
        for index, layer in enumerate(weights.layers):
            for site in self._sites(step, index, layer):
                x = run_block(x, step.sets, site)
        return weights.final_norm(x)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[rows, vocab]` of final hidden states."""
        return self.weights.head(hidden).float()

    def _sites(self, step: _Step, index: int, layer: LayerWeights) -> tuple[Site, Site]:
        shape = self.weights.shape
        return (
            Site(
                rungs=ladder(step.sets.variants, index, "kv_groups"),
                norm=layer.attention_norm,
                out_norm=layer.attention_out_norm,
                features=partial(self._attention, step, index, layer),
                project=layer.o,
                unit=shape.queries_per_group * shape.head_dim,
                own=self._own.get(Block(index, "attention"), {}),
            ),
            Site(
                rungs=ladder(step.sets.variants, index, "ffn"),
                norm=layer.mlp_norm,
                out_norm=layer.mlp_out_norm,
                features=partial(self._mlp, layer),
                project=layer.down,
                unit=1,
                own=self._own.get(Block(index, "mlp"), {}),
            ),
        )

    def _mlp(self, layer: LayerWeights, h: Tensor, rung: Rung, entries: Entries) -> Tensor:
        """Activations of FFN neurons `rung.low..high`, `[rows, neurons]`. `h` is normed rows."""
        gate = entries.add_to(layer.gate.outputs(rung.low, rung.high)(h), 0, rung.low, rung.high)
        up = entries.add_to(layer.up.outputs(rung.low, rung.high)(h), 1, rung.low, rung.high)
        return self.weights.activation(gate) * up

    def _attention(
        self,
        step: _Step,
        index: int,
        layer: LayerWeights,
        h: Tensor,
        rung: Rung,
        entries: Entries,
    ) -> Tensor:
        """What the query heads of KV groups `rung.low..high` mix, `[rows, heads * dim]`."""
        shape = self.weights.shape
        queries, dim = shape.queries_per_group, shape.head_dim
        rows, groups = step.sets.of(rung.variants), slice(rung.low, rung.high)
        where = step.sets.index(rung.variants, step.sets.variants)
        width = (queries + 2) * dim
        low, high = rung.low * width, rung.high * width
        fused = entries.add_to(layer.qkv.outputs(low, high)(h), 0, low, high)
        fused = fused.view(rows.count, rung.high - rung.low, queries + 2, dim)
        turned, values = fused[:, :, : queries + 1], fused[:, :, queries + 1]
        if layer.qk_norm is not None:
            turned = layer.qk_norm(turned)
        _note_queries(turned[:, :, :queries], rows, step, index, groups)
        cos, sin = step.rope[layer.rope]
        turned = turned * cos[where] + turned.roll(dim // 2, -1) * sin[where]
        slots = step.slots[where]
        new_keys = turned[:, :, queries].transpose(0, 1)
        self.cache.keys[index, groups].index_copy_(1, slots, new_keys)
        self.cache.values[index, groups].index_copy_(1, slots, values.transpose(0, 1))
        return self._mix(turned[:, :, :queries], rows, step, index, groups, layer.window)

    def _mix(
        self,
        queries: Tensor,
        rows: Rows,
        step: _Step,
        index: int,
        groups: slice,
        window: int | None,
    ) -> Tensor:
        """Softmax attention, segment by segment. Queries `[rows, groups, queries, dim]`."""
        keys, values = self.cache.keys[index], self.cache.values[index]
        mixed = torch.empty_like(queries, memory_format=torch.contiguous_format)
        whole = step.sets.all.spans
        for span in rows.spans:
            cache = step.segments[span.segment].cache
            held = slice(cache.start, cache.start + cache.held)
            at = whole[span.segment]
            mask = step.mask(span.segment, slice(at.begin, at.end), window, index)
            q = queries[span.begin : span.end].transpose(0, 1).transpose(1, 2)  # g, heads, new, d
            k, v = keys[None, groups, held], values[None, groups, held]
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
                scale=self.weights.softmax_scale,
                enable_gqa=flat.shape[1] != k.shape[1],
            )[0]
            y = y.reshape(q.shape).transpose(1, 2).transpose(0, 1)
            mixed[span.begin : span.end] = y
        return mixed.flatten(1)


def _note_queries(queries: Tensor, rows: Rows, step: _Step, index: int, groups: slice) -> None:
    """Keeps the latest queries of sequences whose eviction looks at them."""
    for span in rows.spans:
        kept = step.segments[span.segment].cache.queries
        if kept is None:
            continue
        whole = step.sets.all.spans[span.segment]
        begin = max(span.begin, span.end - QUERIES)
        at = step.positions[whole.end - (span.end - begin) : whole.end].to(kept.device) % QUERIES
        found = queries[begin : span.end].flatten(1)
        width = queries.shape[2] * queries.shape[3]
        kept[index][at, groups.start * width : groups.stop * width] = found.to(kept.dtype)
