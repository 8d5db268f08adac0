"""The forward pass over packed weights: one native call for all layers of a ragged batch."""

from array import array

import torch
from torch import Tensor

from pruners.kv import RECENT_QUERIES
from pruners.variant import base_spec
from server.engine.backends.native import library as native
from server.engine.backends.native.head_screening import preview
from server.engine.backends.native.model import NativeModel
from server.engine.backends.native.packed_corrections import PackedOwnParts
from server.engine.backends.native.packed_weights import PackedWeights
from server.engine.backends.native.packing import unpack
from server.engine.cache.kv_cache import KVCache
from server.engine.segment import Segment, check_rows

_LIKE = 64  # tokens from all over the vocabulary
FEW = 4
"""Rows for which memory sets the pace; more would look at too much of the head anyway."""


class NativeDecoder:
    """Runs segments through the base or its variants; what `Decoder` does, in one call."""

    def __init__(
        self, weights: PackedWeights, cache: KVCache, own: PackedOwnParts | None = None
    ) -> None:
        self.weights = weights
        self.cache = cache
        self._model = NativeModel(weights, own or {})
        self.threads = torch.get_num_threads()
        self._engine = native.NativeEngine(self.threads)
        self._cache = native.Cache(
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            native.pointer(cache.key_scales),
            native.pointer(cache.value_scales),
            cache.arena.capacity,
        )

    def forward(self, segments: list[Segment]) -> Tensor:
        """Hidden states `[rows, hidden]` after the final norm; keys and values are cached.

        Rows follow the segments' tokens in order. Each segment's `cache` is advanced.
        """
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        first, starts, held, read = [0], [], [], []
        cached, noted, strides = [0] * len(segments), [0] * len(segments), [0] * len(segments)
        for index, segment in enumerate(segments):
            cache, count = segment.cache, len(segment.tokens)
            tokens += segment.tokens
            positions += range(cache.seen, cache.seen + count)
            slots += cache.slots(count)
            cache.advance(count)
            first.append(first[-1] + count)
            starts.append(cache.start)
            held.append(cache.held)
            read.append(count if segment.read is None else segment.read)
            if cache.positions is not None:
                cached[index] = cache.positions.data_ptr()
                strides[index] = cache.positions.shape[1]
            if cache.queries is not None:
                noted[index] = cache.queries.data_ptr()
        check_rows(tokens, max(positions), self.weights.shape.vocab, self.weights.rope)
        variants = [self._model.variant(segment.variant) for segment in segments]
        arrays = [  # in the structure's order; they live until the step is done
            *(array("i", values) for values in (tokens, positions, slots, first, read)),
            array("Q", variants),
            *(array("i", values) for values in (starts, held)),
            array("Q", cached),
            array("i", strides),
            array("Q", noted),
        ]
        addresses = [values.buffer_info()[0] for values in arrays]
        batch = native.Batch(len(tokens), len(segments), *addresses, RECENT_QUERIES)
        hidden = torch.empty(len(tokens), self.weights.shape.hidden)
        self._engine.step(self._model.model, self._cache, batch, hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 logits `[rows, vocab]` of final hidden states."""
        found = torch.empty(len(hidden), self.weights.head.outputs)
        self._engine.project(self._model.head, hidden.contiguous(), found)
        return found

    def best(self, hidden: Tensor) -> list[int]:
        """The arg-max of each row of `logits`, for few rows without computing all of them.

        It is -1 where that is no finite number.
        """
        preview = self._model.preview if len(hidden) <= FEW else None
        return self._engine.best(self._model.head, preview, hidden.contiguous())


def add_preview(weights: PackedWeights) -> None:
    """Gives the weights a preview of their head, for hidden states like those they give."""
    if weights.head.bits == 4:
        return
    vocabulary = weights.embed.outputs
    tokens = list(range(0, vocabulary, -(-vocabulary // _LIKE)))[: weights.context]
    decoder = NativeDecoder(weights, KVCache(weights.shape, _LIKE, weights.dtype, weights.device))
    cache = decoder.cache.open()
    cache.reserve(len(tokens))
    hidden = decoder.forward([Segment(tokens, cache, base_spec(weights.shape))])
    weights.preview = preview(unpack(weights.head), hidden)
