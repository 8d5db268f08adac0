"""Q5_K: groups of 32 codes of 5 bits with a scale and a minimum, which are products.

Served in 8 bits, rounded to the nearest.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType
from server.engine.loading.gguf_file.types.bit_fields import (
    nibbles,
    scales_and_minima,
    single_bits,
)
from server.engine.loading.gguf_file.types.rounding import round_to_8bits


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, None]:
    """Write the nearest codes; `value = scale * code`."""
    codes = single_bits(blocks[..., 16:48])
    codes <<= 4
    low = np.empty_like(codes)
    nibbles(blocks[..., 48:], 32, low)
    codes |= low
    factor, shift = scales_and_minima(blocks)
    groups = (len(blocks), -1, 32)
    return round_to_8bits(codes.reshape(groups), 31, factor, shift, out.reshape(groups)), None


TYPE = TensorType(GGMLQuantizationType.Q5_K, 8, convert)
