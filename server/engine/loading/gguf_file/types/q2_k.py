"""Q2_K: groups of 16 codes of 2 bits with a scale and a minimum, which are products.

Served in 8 bits, rounded to the nearest: there, 32 weights share a scale, and have no minimum.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves
from server.engine.loading.gguf_file.types.bit_fields import quarters
from server.engine.loading.gguf_file.types.rounding import round_to_8bits


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, None]:
    """Write the nearest codes; `value = scale * code`."""
    codes = quarters(blocks[..., 16:80], 32)
    packed = blocks[..., :16]
    rows = len(blocks)
    factor = (halves(blocks, 80) * (packed & 15).astype(np.float32)).reshape(rows, -1)
    shift = -(halves(blocks, 82) * (packed >> 4).astype(np.float32)).reshape(rows, -1)
    groups = (rows, -1, 16)
    codes, out = codes.reshape(groups), out.reshape(groups)
    return round_to_8bits(codes, 3, factor, shift, out), None


TYPE = TensorType(GGMLQuantizationType.Q2_K, 8, convert)
