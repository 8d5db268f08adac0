"""Memory that the system provides when it is first written, and takes back on request."""

import math
import mmap

import torch
from torch import Tensor

_ADVICE = next(
    (getattr(mmap, name) for name in ("MADV_DONTNEED", "MADV_FREE") if hasattr(mmap, name)), None
)
_PRIVATE = {} if not hasattr(mmap, "MAP_PRIVATE") else {
    "flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
}  # fmt: skip


def can_give_back() -> bool:
    """Return whether this system takes pages back."""
    return _ADVICE is not None


class LazyMemory:
    """A `tensor` of zeros on the CPU, whose pages take memory only while they are in use.

    Raises `MemoryError` if there is no room for it in the address space.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = math.prod(shape) * dtype.itemsize
        try:
            self._map = mmap.mmap(-1, size, **_PRIVATE)
        except (OSError, ValueError, OverflowError) as error:
            raise MemoryError(f"no room for {size} bytes: {error}") from error
        self.tensor: Tensor = torch.frombuffer(self._map, dtype=dtype).view(shape)

    def give_back(self, start: int, size: int) -> int:
        """Give the pages that lie within `size` bytes from `start` on back to the system.

        What they held is lost. Return how many bytes they have: 0 where a system cannot do that.
        """
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        count = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if _ADVICE is None or count <= 0:
            return 0
        self._map.madvise(_ADVICE, first, count)
        return count
