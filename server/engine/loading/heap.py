"""Lets memory of large tensors go back to the system at once, where the C library is glibc.

By itself it keeps what was freed, in pieces of up to 32 MB, among small things that live on.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of `mallopt`
_LARGE = 2 << 20  # bytes from which on a block is mapped for itself
_USUAL = 32 << 20  # what the library itself ends up with in a process that allocates much


@contextmanager
def large_blocks_go_back() -> Iterator[None]:
    """Return each large block that is freed to the system; in the end, all that is free."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _USUAL)
        library.mallopt(_TRIM_THRESHOLD, 2 * _USUAL)
        library.malloc_trim(0)
