"""The native backend: opens decoders over packed weights."""

from dataclasses import dataclass

import torch

from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.packed_corrections import PackedCorrections
from server.engine.backends.native.packed_maps import PackedMapsByDepth
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
