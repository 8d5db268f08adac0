"""Rounds codes that 8 bits do not hold exactly to the nearest that they do."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.engine.backends.native.packing import GROUP
from server.engine.loading.gguf_file.types.base import Floats


def round_to_8bits(
    codes: NDArray[np.uint8], highest: int, factor: Floats, shift: Floats, out: NDArray[Any]
) -> Floats:
    """Write `factor * code + shift` in 8 bits to `out`; return the scales of groups of 32.

    `codes` from 0 to `highest` and `out` are `[rows, parts, width]`, where `width` weights share a
    factor and a shift, `[rows, parts]`. A scale is what the largest value that a group's codes
    could have asks for, so that most are those of `packing.quantise`.
    """
    largest = np.maximum(np.abs(shift), np.abs(factor * highest + shift))
    together = GROUP // codes.shape[2]
    largest = largest.reshape(len(codes), -1, together).max(-1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scales = (largest / 127).astype(np.float16).astype(np.float32)
        inverse = np.where(scales == 0, 0, 1 / scales).repeat(together, axis=1)
        steps = codes.astype(np.float32)
        steps *= (factor * inverse)[..., None]
        steps += (shift * inverse)[..., None]
        np.rint(steps, out=steps)
        if not (largest <= 127.4 * scales).all():  # of numbers too small for the precision of fp16
            np.clip(steps, -127, 127, out=steps)
        np.copyto(out, steps, casting="unsafe")
    return scales
