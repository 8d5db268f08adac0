"""Q3_K: groups of 16 codes of 3 bits with a scale, which is a product.

Served in 8 bits, rounded to the nearest: there, 32 weights share a scale.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves
from server.engine.loading.gguf_file.types.bit_fields import nibbles, quarters, single_bits
from server.engine.loading.gguf_file.types.rounding import round_to_8bits


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, None]:
    """Write the nearest codes; `value = scale * code`."""
    codes = single_bits(blocks[..., :32])
    codes <<= 2
    codes |= quarters(blocks[..., 32:96], 32)
    factor = halves(blocks, 108) * _scales(blocks[..., 96:108])
    factor = factor.reshape(len(blocks), -1)
    groups = (len(blocks), -1, 16)
    codes, out = codes.reshape(groups), out.reshape(groups)
    return round_to_8bits(codes, 7, factor, -4 * factor, out), None


def _scales(packed: Blocks) -> Floats:
    """Return the 16 scales of a block: 4 bits each in 8 bytes, then 2 bits each in 4."""
    scales = np.empty((*packed.shape[:2], 16), np.uint8)
    nibbles(packed[..., :8], 8, scales)
    scales |= quarters(packed[..., 8:], 4) << 4
    return scales.astype(np.float32) - 32


TYPE = TensorType(GGMLQuantizationType.Q3_K, 8, convert)
