"""Q6_K: groups of 16 codes of 6 bits with a scale, which is a product.

Served in 8 bits, rounded to the nearest: there, 32 weights share a scale.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves
from server.engine.loading.gguf_file.types.bit_fields import nibbles, quarters
from server.engine.loading.gguf_file.types.rounding import round_to_8bits


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, None]:
    """Write the nearest codes; `value = scale * code`."""
    codes = quarters(blocks[..., 128:192], 32)
    codes <<= 4
    low = np.empty_like(codes)
    nibbles(blocks[..., :128], 64, low)
    codes |= low
    factor = halves(blocks, 208) * blocks[..., 192:208].view(np.int8).astype(np.float32)
    factor = factor.reshape(len(blocks), -1)
    groups = (len(blocks), -1, 16)
    codes, out = codes.reshape(groups), out.reshape(groups)
    return round_to_8bits(codes, 63, factor, -32 * factor, out), None


TYPE = TensorType(GGMLQuantizationType.Q6_K, 8, convert)
