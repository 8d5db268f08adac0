"""Q5_1: groups of 32 codes of 5 bits with a scale and a minimum.

Served in 8 bits, rounded to the nearest: 8 bits have no minimum.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves
from server.engine.loading.gguf_file.types.bit_fields import five_bits
from server.engine.loading.gguf_file.types.rounding import round_to_8bits


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, None]:
    """Write the nearest codes; `value = scale * code`."""
    codes = np.empty(out.shape, np.uint8)
    five_bits(blocks[..., 4:], codes)
    scales, minima = halves(blocks, 0)[..., 0], halves(blocks, 2)[..., 0]
    return round_to_8bits(codes, 31, scales, minima, out), None


TYPE = TensorType(GGMLQuantizationType.Q5_1, 8, convert)
