"""The forward pass over packed weights: one native call for all layers of a ragged batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pruners.variant import base_spec
from server.engine.backends.base import Segment
from server.engine.backends.native.batch import NativeBatch
from server.engine.backends.native.head_screening import build_head_screen
from server.engine.backends.native.library import NativeEngine
from server.engine.backends.native.model import NativeModel
from server.engine.backends.native.packed_corrections import PackedCorrections
from server.engine.backends.native.packed_maps import PackedMapsByDepth
from server.engine.backends.native.packed_weights import (
    MAX_SAMPLED_ROWS,
    MAX_SCREENED_ROWS,
    PackedWeights,
)
from server.engine.backends.native.packing import PackedRows
from server.engine.backends.native.structures import CacheStruct, address_of
from server.engine.cache.kv_cache import KVCache
from server.engine.draw import Draw

_SAMPLE_TOKENS = 64  # from all over the vocabulary


class NativeDecoder:
    """Runs segments through the base or its variants, in one native call (see `base.Decoder`).

    `threads` is the number of threads of the kernels.
    """

    # PyTorch's idle threads would spin beside those of the kernels, which do the heavy work.
    torch_threads: int | None = 1

    def __init__(
        self,
        weights: PackedWeights,
        cache: KVCache,
        corrections: PackedCorrections | None = None,
        maps: PackedMapsByDepth | None = None,
    ) -> None:
        self.weights = weights
        self.cache = cache
        # Empty ones are kept, too: what is added to them later is served.
        self._model = NativeModel(
            weights,
            {} if corrections is None else corrections,
            {} if maps is None else maps,
        )
        self.threads = torch.get_num_threads()
        self._engine = NativeEngine(self.threads)
        self._cache = CacheStruct(
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            address_of(cache.key_scales),
            address_of(cache.value_scales),
            cache.arena.capacity,
        )

    @property
    def isa(self) -> str:
        """Return the name of the instruction set of the kernels."""
        return self._engine.isa

    def forward(self, segments: list[Segment]) -> Tensor:
        """Return hidden states `[rows, hidden]`, fp32, after the final norm; cache keys and values.

        Rows follow the tokens of the segments in order. Each segment's `cache` is advanced. Raises
        `IndexError` for a token or a position that the model does not have, and `ValueError` for a
        variant that is wider than the base, and for shallow tokens of a depth without maps or among
        the outputs.
        """
        batch = NativeBatch(segments, self._model)
        hidden = torch.empty(batch.struct.rows, self.weights.shape.hidden)
        self._engine.step(self._model.model, self._cache, batch.struct, hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits `[rows, vocab]` of final hidden states, fp32 `[rows, hidden]`."""
        logits = torch.empty(len(hidden), self.weights.head.outputs)
        self._engine.project(self._model.head, hidden.contiguous(), logits)
        return logits

    def argmax(self, hidden: Tensor) -> list[int]:
        """Return the likeliest token of each row of `hidden`, fp32 `[rows, hidden]`.

        It is -1 where the highest logit is not a finite number.
        """
        return self.sample(hidden, [Draw()] * len(hidden))

    def sample(self, hidden: Tensor, draws: Sequence[Draw]) -> list[int]:
        """Return the token that each draw takes of the logits of its row of `hidden`.

        `hidden` is fp32 `[rows, hidden]`. For few rows a coarse copy of the head shows which logits
        need to be computed; the tokens are the same. With filters too many would have to be.
        """
        samples = any(draw.temperature > 0 for draw in draws)
        limit = MAX_SAMPLED_ROWS if samples else MAX_SCREENED_ROWS
        pays = len(hidden) <= limit and not any(draw.is_filtered for draw in draws)
        screen = self._model.head_screen if pays else None
        return self._engine.draw(self._model.head, screen, hidden.contiguous(), draws)


def add_head_screen(weights: PackedWeights) -> None:
    """Give the weights a coarse copy of their head, unless the head has 4 bits already.

    It is fitted to hidden states that the weights give for tokens from all over the vocabulary.
    """
    if weights.head.bits == 4:
        return
    vocabulary = weights.embed.outputs
    tokens = list(range(0, vocabulary, -(-vocabulary // _SAMPLE_TOKENS)))[: weights.context]
    cache = KVCache(weights.shape, _SAMPLE_TOKENS, weights.dtype, weights.device)
    decoder = NativeDecoder(weights, cache)
    sequence = cache.open()
    sequence.reserve(len(tokens))
    hidden = decoder.forward([Segment(tokens, sequence, base_spec(weights.shape))])
    weights.head_screen = build_head_screen(PackedRows(weights.head), hidden)
