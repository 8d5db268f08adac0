"""F64: plain numbers, rounded to fp32. They are rounded to 4 or 8 bits as any other model's."""

from gguf import GGMLQuantizationType

from server.engine.loading.gguf_file.types.base import TensorType

TYPE = TensorType(GGMLQuantizationType.F64)
