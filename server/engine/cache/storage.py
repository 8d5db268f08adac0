"""The tensors that hold the keys and values of all sequences, and the arena of their slots."""

import torch
from torch import Tensor

from pruners.architecture import Shape
from server.engine.cache.arena import Arena


class KVStorage:
    """Keys and values of all sequences: two tensors `[layers, kv_groups, slots, head_dim]`.

    With dtype int8 each key and value vector has an fp32 scale, `[layers, kv_groups, slots]`. The
    last `spare` slots lie outside the arena and belong to no sequence.
    """

    def __init__(
        self,
        shape: Shape,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        spare: int = 0,
    ) -> None:
        self.shape = shape
        self.arena = Arena(capacity)
        slots = self.arena.capacity + spare
        size = (shape.layers, shape.kv_groups, slots, shape.head_dim)
        # `empty`, since pages of memory that were never written take no space.
        self.keys = torch.empty(size, dtype=dtype, device=device)
        self.values = torch.empty(size, dtype=dtype, device=device)
        self.key_scales = torch.empty(size[:3]) if dtype == torch.int8 else None
        self.value_scales = torch.empty(size[:3]) if dtype == torch.int8 else None

    def tensors(self) -> list[Tensor]:
        """Return keys, values and the scales of both, if any: `[layers, kv_groups, slots, ...]`."""
        scales = (self.key_scales, self.value_scales)
        return [self.keys, self.values, *(t for t in scales if t is not None)]

    def allocate(self, size: int) -> int | None:
        """Return the start of a free run of `size` slots, or None if there is none."""
        return self.arena.allocate(size)
