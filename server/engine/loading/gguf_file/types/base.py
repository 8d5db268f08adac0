"""What every type of tensor gives: values, and codes where groups of 32 hold them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from server.engine.backends.native.packing import Bits, Codes

Data: TypeAlias = NDArray[Any]
"""Rows as the `gguf` package has them: `[rows, bytes]`, or the numbers of plain floats."""

Blocks: TypeAlias = NDArray[np.uint8]
"""Rows of blocks, `[rows, blocks, bytes of a block]`."""

Floats: TypeAlias = NDArray[np.float32]

Convert: TypeAlias = Callable[[Blocks, NDArray[Any]], tuple[Floats, Floats | None]]
"""Writes the codes of blocks into `[rows, blocks, weights of a block]`.

Returns the scales and the minima of groups of 32 in fp32, `[rows, groups]`. Minima are None in 8
bits.
"""

_CHUNK = 1 << 17  # weights at a time, so that what is computed of them stays in the cache


@dataclass(frozen=True, slots=True)
class TensorType:
    """A type of tensors in GGUF files. One without `convert` has no codes.

    `bits` are those of its codes.
    """

    kind: GGMLQuantizationType
    bits: Bits | None = None
    convert: Convert | None = None

    def values(self, data: Data) -> Tensor:
        """Return the exact values of rows or of a vector, in fp32; those of F64 are rounded."""
        if np.issubdtype(data.dtype, np.floating):
            return torch.from_numpy(data.astype(np.float32))
        return torch.from_numpy(gguf.dequantize(np.asarray(data), self.kind))

    def codes(self, data: Data) -> Codes | None:
        """Return the codes of whole rows `[rows, bytes]`.

        It is None if the type has none, or if groups in fp16 cannot hold these rows.
        """
        if self.convert is None or self.bits is None:
            return None
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        blocks = np.asarray(data).reshape(len(data), -1, size)  # no view of a map: they are slow
        codes = np.empty((*blocks.shape[:2], block), np.uint8 if self.bits == 4 else np.int8)
        step = max(1, _CHUNK // max(1, codes[0].size))
        with np.errstate(invalid="ignore"):  # what is no number has no codes
            parts = [
                self.convert(blocks[at : at + step], codes[at : at + step])
                for at in range(0, len(blocks), step)
            ]
        scales = _halves([scales for scales, _ in parts])
        minima = _halves([minima for _, minima in parts if minima is not None])
        in_range = self.bits == 4 or codes.min(initial=0) > -128
        if scales is None or (minima is None and self.bits == 4) or not in_range:
            return None
        flat = torch.from_numpy(codes.reshape(len(codes), -1))
        return Codes(self.bits, flat, scales, minima, flat.shape[1])


def _halves(parts: list[Floats]) -> Tensor | None:
    """Round numbers of groups `[rows, groups]` to fp16; return None where there are none.

    Also if one is beyond fp16. None is too small for its precision: they are fp16 numbers times
    whole ones.
    """
    rounded = torch.from_numpy(np.concatenate(parts)).half() if parts else None
    return rounded if rounded is not None and bool(rounded.isfinite().all()) else None


def halves(blocks: Blocks, at: int) -> Floats:
    """Return the fp16 number at byte `at` of each block, in fp32 `[rows, blocks, 1]`."""
    raw = np.ascontiguousarray(blocks[..., at : at + 2])
    return raw.view(np.float16).astype(np.float32)
