"""Write fp32 tensors as a safetensors file, one after the other, so that one is in memory."""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SIZE = 4


def write_safetensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[tuple[str, NDArray[np.float32]]],
) -> None:
    """Write `tensors`, which come in the order of `shapes`. Raises `OSError`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _SIZE * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), (written, values) in zip(shapes.items(), tensors, strict=True):
            assert name == written
            assert values.shape == tuple(shape)
            assert values.dtype == np.float32
            file.write(values.data)
