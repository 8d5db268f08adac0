"""Q8_0: groups of 32 codes of 8 bits with a scale. Served in 8 bits, exactly."""

from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, None]:
    """Write the codes; `value = scale * code`."""
    out[...] = blocks[..., 2:].view(np.int8)
    return halves(blocks, 0)[..., 0], None


TYPE = TensorType(GGMLQuantizationType.Q8_0, 8, convert)
