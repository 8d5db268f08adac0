"""IQ4_NL: groups of 32 indices into a table of 16 numbers with a scale.

Served in 8 bits, exactly: the numbers of the table are whole.
"""

from typing import Any

from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, TensorType, halves
from server.engine.loading.gguf_file.types.bit_fields import looked_up


def convert(blocks: Blocks, out: NDArray[Any]) -> tuple[Floats, None]:
    """Write the numbers of the table as codes; `value = scale * code`."""
    looked_up(blocks[..., 2:], out)
    return halves(blocks, 0)[..., 0], None


TYPE = TensorType(GGMLQuantizationType.IQ4_NL, 8, convert)
