"""Q4_K: groups of 32 codes of 4 bits with a scale and a minimum, which are products.

Served in 4 bits; the products are rounded to fp16, by at most 2^-11 of themselves.
"""

from typing import Any

from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType
from server.engine.loading.gguf_file.types.bit_fields import nibbles, scales_and_minima


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, Floats]:
    """Write the codes; `value = scale * code + minimum`."""
    nibbles(blocks[..., 16:], 32, out)
    return scales_and_minima(blocks)


TYPE = TensorType(GGMLQuantizationType.Q4_K, 4, convert)
