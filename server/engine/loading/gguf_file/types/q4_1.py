"""Q4_1: groups of 32 codes of 4 bits with a scale and a minimum. Served in 4 bits, exactly."""

from typing import Any

from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves
from server.engine.loading.gguf_file.types.bit_fields import nibbles


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, Floats]:
    """Write the codes; `value = scale * code + minimum`."""
    nibbles(blocks[..., 4:], 16, out)
    return halves(blocks, 0)[..., 0], halves(blocks, 2)[..., 0]


TYPE = TensorType(GGMLQuantizationType.Q4_1, 4, convert)
