"""The forward pass: a ragged batch of segments, each at its own position and of its own variant.

A segment is a prompt chunk or one decoded token; both take the same path. The pass reads each
weight once, whatever variants the batch mixes (see `ladder`).
"""

from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.variant import Block
from server.engine.backends.pytorch.block import Entries, Site, run_block
from server.engine.backends.pytorch.corrections import OwnParts
from server.engine.backends.pytorch.nested_widths import Rung, ladder
from server.engine.backends.pytorch.ragged_step import RaggedStep
from server.engine.backends.pytorch.step import Step, View
from server.engine.backends.pytorch.weights import BaseWeights, LayerWeights
from server.engine.cache.kv_cache import KVCache
from server.engine.segment import Segment


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
        return self.run(RaggedStep(segments, self.weights))

    def run(self, step: Step) -> Tensor:
        """The same for a step that is laid out already."""
        weights = self.weights
        x = F.embedding(step.tokens, weights.embed)
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

    def best(self, hidden: Tensor) -> list[int]:
        """The likeliest token of each row; -1 where its logit is no finite number."""
        values, tokens = self.logits(hidden).max(-1)
        found: list[int] = tokens.masked_fill(~values.isfinite(), -1).tolist()
        return found

    def _sites(self, step: Step, index: int, layer: LayerWeights) -> tuple[Site, Site]:
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
        step: Step,
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
        step.note(turned[:, :, :queries], rows, index, groups)
        cos, sin = step.rope[layer.rope]
        turned = turned * cos[where] + turned.roll(dim // 2, -1) * sin[where]
        slots = step.slots[where]
        new_keys = turned[:, :, queries].transpose(0, 1)
        self.cache.keys[index, groups].index_copy_(1, slots, new_keys)
        self.cache.values[index, groups].index_copy_(1, slots, values.transpose(0, 1))
        keys, values = self.cache.keys[index, groups], self.cache.values[index, groups]
        view = View(index, groups, keys, values, layer.window, self.weights.softmax_scale)
        return step.mix(turned[:, :, :queries], rows, view)
