"""Q4_0: groups of 32 codes of 4 bits with a scale. Served in 4 bits, exactly."""

from typing import Any

from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves
from server.engine.loading.gguf_file.types.bit_fields import nibbles


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, Floats]:
    """Write the codes; `value = scale * code - 8 * scale`."""
    nibbles(blocks[..., 2:], 16, out)
    scales = halves(blocks, 0)[..., 0]
    return scales, -8 * scales


TYPE = TensorType(GGMLQuantizationType.Q4_0, 4, convert)
