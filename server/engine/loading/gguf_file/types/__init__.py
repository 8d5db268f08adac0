"""The types of tensors in GGUF files: exact values, and codes that are served without dequantising.

A type is a module here that has the type's name and a `TYPE`. Those without a module have values if
the `gguf` package knows them.
"""

import pkgutil
from functools import cache
from importlib import import_module

import gguf
import numpy as np
from gguf import GGMLQuantizationType

from server.engine.loading.gguf_file.types.base import Data, TensorType


@cache
def tensor_type(name: str) -> TensorType:
    """Return the type that GGML calls `name`. Raises `KeyError` for one that cannot be read."""
    if name in tensor_types():
        found: TensorType = import_module(f"{__name__}.{name.lower()}").TYPE
        return found
    kind = GGMLQuantizationType[name]
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError as error:
        raise KeyError(name) from error
    return TensorType(kind)


@cache
def tensor_types() -> frozenset[str]:
    """Return the names of the types that have a module, such as `Q4_K`."""
    names = {module.name.upper() for module in pkgutil.iter_modules(__path__)}
    return frozenset(names & GGMLQuantizationType.__members__.keys())


__all__ = ["Data", "TensorType", "tensor_type", "tensor_types"]
