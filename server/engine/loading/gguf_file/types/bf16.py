"""BF16: plain numbers, kept as they are. They are rounded to 4 or 8 bits as any other model's."""

from gguf import GGMLQuantizationType

from server.engine.loading.gguf_file.types.base import TensorType

TYPE = TensorType(GGMLQuantizationType.BF16)
