"""The native backend: opens decoders over packed weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from server.engine.backends.base import Additions
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.packed_corrections import PackedCorrections, pack_corrections
from server.engine.backends.native.packed_maps import PackedMapsByDepth, pack_maps
from server.engine.backends.native.packed_weights import PackedWeights
from server.engine.cache.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class NativeBackend:
    """Packed weights, corrections and maps (see `base.ModelBackend`)."""

    weights: PackedWeights
    corrections: PackedCorrections
    maps: PackedMapsByDepth

    def open_decoder(self, slots: int, cache_dtype: torch.dtype) -> NativeDecoder:
        """Return a decoder over a new cache of `slots` tokens in bf16 or int8.

        Raises `RuntimeError` or `TypeError` for a cache that cannot be allocated.
        """
        weights = self.weights
        cache = KVCache(weights.shape, slots, cache_dtype, weights.device)
        return NativeDecoder(weights, cache, self.corrections, self.maps)

    def prepare(self, additions: Additions) -> Callable[[], None]:
        """Pack what further variants and readers need, and return what adds it (see the base)."""
        corrections = pack_corrections(self.weights, additions.corrections)
        maps = pack_maps(self.weights.shape, additions.maps, additions.kv_order)

        def add() -> None:
            for block, by_variant in corrections.items():
                self.corrections.setdefault(block, {}).update(by_variant)
            self.maps.update(maps)

        return add
