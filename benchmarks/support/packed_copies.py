"""Packed matrices that are measured from memory: so many copies that no cache holds them."""

import time
from collections.abc import Callable

from server.engine.backends.native.packing import PackedMatrix

WORKING_SET = 2**28  # bytes that a kernel reads in turn, so that it finds none in a cache


def copies_of(packed: PackedMatrix) -> list[PackedMatrix]:
    """Return so many copies of a matrix that they fill the working set."""
    count = max(2, WORKING_SET // packed.data.nbytes)
    return [
        PackedMatrix(
            packed.data.clone(),
            None,
            packed.outputs,
            packed.inputs,
            packed.bits,
            packed.input_major,
        )
        for _ in range(count)
    ]


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
