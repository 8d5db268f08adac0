"""The forward pass: a ragged batch of segments, each at its own position and of its own variant.

A segment is a prompt chunk or one decoded token; both take the same path. The pass reads each
weight once, whatever variants the batch mixes (see `nested_widths`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.variant import Block
from server.engine.backends.base import Segment, check_shallow
from server.engine.backends.pytorch.block import RangeCorrections, SubBlock, run_sub_block
from server.engine.backends.pytorch.corrections import PyTorchCorrections
from server.engine.backends.pytorch.kv_maps import PyTorchMapsByDepth
from server.engine.backends.pytorch.nested_widths import WidthRange, width_ranges
from server.engine.backends.pytorch.ragged_step import RaggedStep
from server.engine.backends.pytorch.step import EndingRows, LayerCache, Step
from server.engine.backends.pytorch.weights import LayerWeights, PyTorchWeights
from server.engine.cache.kv_cache import KVCache
from server.engine.draw import Draw, choose


@dataclass(frozen=True, slots=True)
class _AttentionStep:
    """The attention of one layer in one step."""

    step: Step
    index: int
    layer: LayerWeights


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding to the first features of heads `[rows, groups, heads, head_dim]`.

    `cos` and `sin`, whose first half has its sign changed, are `[rows, 1, 1, rotated]`.
    """
    size = cos.shape[-1]
    if size < heads.shape[-1]:
        return torch.cat([rotate(heads[..., :size], cos, sin), heads[..., size:]], dim=-1)
    return (heads * cos + heads.roll(size // 2, -1) * sin).to(heads.dtype)


class PyTorchDecoder:
    """Runs segments through the base or its variants with PyTorch (see `base.Decoder`)."""

    torch_threads: int | None = None

    def __init__(
        self,
        weights: PyTorchWeights,
        cache: KVCache,
        corrections: PyTorchCorrections | None = None,
        maps: PyTorchMapsByDepth | None = None,
    ) -> None:
        self.weights = weights
        self.cache = cache
        # Empty ones are kept, too: what is added to them later is served.
        self._corrections = {} if corrections is None else corrections
        self._maps = {} if maps is None else maps

    @torch.inference_mode()
    def forward(self, segments: list[Segment]) -> Tensor:
        """Return hidden states `[rows, hidden]` after the final norm; cache keys and values.

        Rows follow the tokens of the segments in order. Each segment's `cache` is advanced. Raises
        `IndexError` for a token or a position that the model does not have, and `ValueError` for
        shallow tokens of a depth without maps or among the outputs.
        """
        check_shallow(segments, self._maps)
        return self.run(RaggedStep(segments, self.weights))

    def run(self, step: Step) -> Tensor:
        """Return hidden states `[rows, hidden]` after the final norm for the rows of a step.

        Those of shallow rows are zeros.
        """
        weights = self.weights
        kept: Tensor | None = None  # the rows that are left
        x = F.embedding(step.tokens, weights.embed)
        rows = len(x)
        if weights.embed_scale != 1.0:
            x = x * weights.embed_scale
        for index, layer in enumerate(weights.layers):
            ending = step.end_rows(index)
            if ending is not None:
                self._write_mapped(index, x[ending.rows], ending)
                x, step = x[ending.kept], ending.others
                kept = ending.kept if kept is None else kept[ending.kept]
                if not len(x):
                    break
            for block in self._sub_blocks(step, index, layer):
                x = run_sub_block(x, step.subsets, block)
        final = weights.final_norm(x)
        if kept is None:
            return final
        return final.new_zeros(rows, final.shape[1]).index_copy_(0, kept, final)

    def _write_mapped(self, depth: int, x: Tensor, ending: EndingRows) -> None:
        """Write the keys and values of hidden states `[rows, hidden]` from layer `depth` on."""
        shape, maps = self.weights.shape, self._maps[depth]
        inputs = maps.features(x)
        for index, project in enumerate(maps.layers, start=depth):
            layer = self.weights.layers[index]
            heads = project(inputs).view(len(x), shape.kv_groups, 2, shape.head_dim)
            keys, values = heads[:, :, :1], heads[:, :, 1]
            if layer.qk_norm is not None:
                keys = layer.qk_norm.of_last()(keys)
            keys = rotate(keys, *ending.rope[layer.rope])
            self.cache.keys[index].index_copy_(1, ending.slots, keys[:, :, 0].transpose(0, 1))
            self.cache.values[index].index_copy_(1, ending.slots, values.transpose(0, 1))

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits `[rows, vocab]` of final hidden states `[rows, hidden]`."""
        return self.weights.head(hidden).float()

    def argmax(self, hidden: Tensor) -> list[int]:
        """Return the likeliest token of each row of `hidden`, `[rows, hidden]`.

        It is -1 where the highest logit is not a finite number.
        """
        values, tokens = self.logits(hidden).max(-1)
        likeliest: list[int] = tokens.masked_fill(~values.isfinite(), -1).tolist()
        return likeliest

    def sample(self, hidden: Tensor, draws: Sequence[Draw]) -> list[int]:
        """Return the token that each draw takes of the logits of its row of `hidden`.

        `hidden` is `[rows, hidden]`.
        """
        if not any(draw.temperature or draw.allowed is not None for draw in draws):
            return self.argmax(hidden)
        return [choose(row, draw) for row, draw in zip(self.logits(hidden), draws, strict=True)]

    def _sub_blocks(self, step: Step, index: int, layer: LayerWeights) -> tuple[SubBlock, SubBlock]:
        shape, variants = self.weights.shape, step.subsets.variants
        return (
            SubBlock(
                ranges=width_ranges(variants, index, "kv_groups"),
                norm=layer.attention_norm,
                out_norm=layer.attention_out_norm,
                features=partial(self._attention, _AttentionStep(step, index, layer)),
                project=layer.o,
                unit=shape.queries_per_group * shape.head_dim,
                corrections=self._corrections.get(Block(index, "attention"), {}),
                scale=self.weights.residual_scale,
            ),
            SubBlock(
                ranges=width_ranges(variants, index, "ffn"),
                norm=layer.mlp_norm,
                out_norm=layer.mlp_out_norm,
                features=partial(self._mlp, layer),
                project=layer.down,
                unit=1,
                corrections=self._corrections.get(Block(index, "mlp"), {}),
                scale=self.weights.residual_scale,
            ),
        )

    def _mlp(
        self, layer: LayerWeights, h: Tensor, widths: WidthRange, corrections: RangeCorrections
    ) -> Tensor:
        """Return activations of FFN neurons `low..high`, `[rows, high - low]`.

        `h` are normed rows, `[rows, hidden]`.
        """
        low, high = widths.low, widths.high
        gate = corrections.add_to(layer.gate.outputs(low, high)(h), 0, low, high)
        up = corrections.add_to(layer.up.outputs(low, high)(h), 1, low, high)
        return self.weights.activation(gate) * up

    def _attention(
        self, at: _AttentionStep, h: Tensor, widths: WidthRange, corrections: RangeCorrections
    ) -> Tensor:
        """Return the attention of KV groups `low..high`, `[rows, query heads * head_dim]`.

        `h` are normed rows, `[rows, hidden]`. Keys and values are written to the cache.
        """
        step, layer, shape = at.step, at.layer, self.weights.shape
        queries, dim = shape.queries_per_group, shape.head_dim
        rows, groups = step.subsets.of(widths.variants), slice(widths.low, widths.high)
        where = step.subsets.index(widths.variants, step.subsets.variants)
        width = (queries + 2) * dim
        low, high = widths.low * width, widths.high * width
        fused = corrections.add_to(layer.qkv.outputs(low, high)(h), 0, low, high)
        fused = fused.view(rows.count, widths.high - widths.low, queries + 2, dim)
        heads, values = fused[:, :, : queries + 1], fused[:, :, queries + 1]  # queries and key
        if layer.qk_norm is not None:
            heads = layer.qk_norm(heads)
        step.record_queries(heads[:, :, :queries], rows, at.index, groups)
        cos, sin = step.rope[layer.rope]
        heads = rotate(heads, cos[where], sin[where])
        slots = step.slots[where]
        cached_keys = self.cache.keys[at.index, groups]
        cached_values = self.cache.values[at.index, groups]
        cached_keys.index_copy_(1, slots, heads[:, :, queries].transpose(0, 1))
        cached_values.index_copy_(1, slots, values.transpose(0, 1))
        cached = LayerCache(
            layer=at.index,
            groups=groups,
            keys=cached_keys,
            values=cached_values,
            window=layer.window,
            scale=self.weights.softmax_scale,
        )
        return step.attend(heads[:, :, :queries], rows, cached)
