"""The PyTorch backend: opens decoders over converted weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from server.engine.backends.base import Additions
from server.engine.backends.pytorch.corrections import PyTorchCorrections, convert_corrections
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.graph_decoder import GraphDecoder
from server.engine.backends.pytorch.kv_maps import PyTorchMapsByDepth, convert_maps
from server.engine.backends.pytorch.weights import PyTorchWeights
from server.engine.cache.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class PyTorchBackend:
    """Weights, corrections and maps in PyTorch tensors (see `base.ModelBackend`)."""

    weights: PyTorchWeights
    corrections: PyTorchCorrections
    maps: PyTorchMapsByDepth

    def open_decoder(self, slots: int, cache_dtype: torch.dtype) -> PyTorchDecoder:
        """Return a decoder over a new cache of `slots` tokens; on a GPU one with CUDA graphs.

        Raises `RuntimeError` or `TypeError` for a cache that cannot be allocated.
        """
        weights = self.weights
        recorded = weights.device.type != "cpu"
        cache = KVCache(weights.shape, slots, cache_dtype, weights.device, spare=int(recorded))
        decoder = GraphDecoder if recorded else PyTorchDecoder
        return decoder(weights, cache, self.corrections, self.maps)

    def prepare(self, additions: Additions) -> Callable[[], None]:
        """Convert what further variants and readers need; return what adds it (see the base)."""
        corrections = convert_corrections(self.weights, additions.corrections)
        maps = convert_maps(self.weights, additions.maps, additions.kv_order)

        def add() -> None:
            for block, by_variant in corrections.items():
                self.corrections.setdefault(block, {}).update(by_variant)
            self.maps.update(maps)

        return add
