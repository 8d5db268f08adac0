"""Q5_0: groups of 32 codes of 5 bits with a scale. Served in 8 bits, exactly."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves
from server.engine.loading.gguf_file.types.bit_fields import five_bits


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, None]:
    """Write the codes; `value = scale * code`."""
    five_bits(blocks[..., 2:], out.view(np.uint8))
    out -= 16
    return halves(blocks, 0)[..., 0], None


TYPE = TensorType(GGMLQuantizationType.Q5_0, 8, convert)
