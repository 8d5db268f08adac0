"""IQ4_XS: groups of 32 indices into a table of 16 numbers with a scale, which is a product.

Served in 8 bits; the product is rounded to fp16, by at most 2^-11 of itself.
"""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves
from server.engine.loading.gguf_file.types.bit_fields import looked_up


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, None]:
    """Write the numbers of the table as codes; `value = scale * code`."""
    looked_up(blocks[..., 8:], out)
    low = blocks[..., 4:8]
    scales = np.stack([low & 15, low >> 4], -1).reshape(*low.shape[:2], 8)
    high = np.ascontiguousarray(blocks[..., 2:4]).view(np.uint16)
    bits = (high >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & 3
    whole = (scales | bits << 4).astype(np.float32) - 32
    return (halves(blocks, 0) * whole).reshape(len(blocks), -1), None


TYPE = TensorType(GGMLQuantizationType.IQ4_XS, 8, convert)
