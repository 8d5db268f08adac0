"""The tensors that hold the keys and values of all sequences, and the arena of their slots."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pruners.architecture import Shape
from server.engine.cache.arena import GRANULARITY, Arena
from server.engine.cache.lazy_memory import LazyMemory, can_give_back


class KVStorage:
    """Keys and values of all sequences: two tensors `[layers, kv_groups, slots, head_dim]`.

    With dtype int8 each key and value vector has an fp32 scale, `[layers, kv_groups, slots]`. The
    last `spare` slots lie outside the arena and belong to no sequence. On a CPU the memory of a
    slot, `slot_bytes`, is taken when it is first used, on a GPU that of all slots at once.

    Raises `MemoryError`, `RuntimeError` or `TypeError` for tensors that cannot be allocated.
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
        slots = capacity // GRANULARITY * GRANULARITY + spare
        size = (shape.layers, shape.kv_groups, slots, shape.head_dim)
        sizes: list[tuple[tuple[int, ...], torch.dtype]] = [(size, dtype)] * 2
        sizes += [(size[:3], torch.float32)] * 2 if dtype == torch.int8 else []
        self._memory: list[LazyMemory] = []
        if device.type == "cpu":
            self._memory = [LazyMemory(*one) for one in sizes]
            tensors = [memory.tensor for memory in self._memory]
        else:
            tensors = [torch.empty(part, dtype=kind, device=device) for part, kind in sizes]
        self.keys, self.values = tensors[:2]
        self.key_scales: Tensor | None
        self.value_scales: Tensor | None
        self.key_scales, self.value_scales = tensors[2:] or (None, None)
        self.arena = Arena(capacity)
        self.slot_bytes = sum(tensor[:, :, 0].nbytes for tensor in tensors)

    def tensors(self) -> list[Tensor]:
        """Return keys, values and the scales of both, if any: `[layers, kv_groups, slots, ...]`."""
        scales = (self.key_scales, self.value_scales)
        return [self.keys, self.values, *(t for t in scales if t is not None)]

    def allocate(self, size: int, must_grow: bool = False) -> int | None:
        """Return the start of a free run of `size` slots, or None if there is none.

        Memory may be short; what must grow is given some all the same.
        """
        return self.arena.allocate(size)

    def extend(self, end: int, size: int, must_grow: bool = False) -> bool:
        """Take the `size` slots right behind `end`; return False if they are not free."""
        return self.arena.extend(end, size)

    @property
    def gives_back(self) -> bool:
        """Return whether memory can be given back to the system before the server ends."""
        return bool(self._memory) and can_give_back()

    def give_back(self, runs: Sequence[tuple[int, int]]) -> int:
        """Give the memory of free runs (start, size) back to the system; return its bytes.

        Of a page that they share with other slots nothing is given back.
        """
        total = 0
        for memory in self._memory:
            layers, groups, slots = memory.tensor.shape[:3]
            slot = memory.tensor[0, 0, 0].nbytes
            for row in range(layers * groups):
                for start, size in runs:
                    total += memory.give_back((row * slots + start) * slot, size * slot)
        return total
