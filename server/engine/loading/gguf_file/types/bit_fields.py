"""Takes the bits of codes out of blocks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.engine.loading.gguf_file.types.base import Blocks, Floats, halves


def nibbles(packed: Blocks, width: int, out: NDArray[Any]) -> None:
    """Write codes of 4 bits to `out`: of each `width` bytes the low halves, then the high ones.

    `packed` is `[rows, blocks, bytes]`, `out` has twice as many bytes in a block.
    """
    runs = packed.reshape(*packed.shape[:2], -1, width)
    pairs = out.view(np.uint8).reshape(*out.shape[:2], -1, 2, width)
    np.bitwise_and(runs, 15, out=pairs[..., 0, :])
    np.right_shift(runs, 4, out=pairs[..., 1, :])


def quarters(packed: Blocks, width: int) -> NDArray[np.uint8]:
    """Return codes of 2 bits: of each `width` bytes the lowest two bits, then the next two.

    `packed` is `[rows, blocks, bytes]`; four times as many bytes in a block are returned.
    """
    runs = packed.reshape(*packed.shape[:2], -1, 1, width)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return ((runs >> shifts) & np.uint8(3)).reshape(*packed.shape[:2], -1)


def single_bits(packed: Blocks) -> NDArray[np.uint8]:
    """Return the lowest bit of each byte, then the next ones, from `[rows, blocks, bytes]`.

    Eight times as many bytes in a block are returned, each 0 or 1.
    """
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    return ((packed[..., None, :] >> shifts) & np.uint8(1)).reshape(*packed.shape[:2], -1)


def scales_and_minima(blocks: Blocks) -> tuple[Floats, Floats]:
    """Return scale and minimum of the groups of 32 in Q4_K and Q5_K, each `[rows, groups]`.

    A block of 256 has eight pairs of 6 bits in bytes 4 to 15, and the fp16 factors of the scales
    and of the minima in front of them. The minimum is subtracted: it is returned negative.
    """
    first, second, third = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate([first & 63, third & 15 | (first >> 6) << 4], -1)
    minima = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], -1)
    rows = len(blocks)
    scaled = halves(blocks, 0) * scales.astype(np.float32)
    shifted = -(halves(blocks, 2) * minima.astype(np.float32))
    return scaled.reshape(rows, -1), shifted.reshape(rows, -1)


def five_bits(packed: Blocks, out: NDArray[np.uint8]) -> None:
    """Write the codes of groups of 32 in Q5_0 and Q5_1 to `out`, `[rows, blocks, 32]`.

    `packed` is their fifth bits in 4 bytes, then the other bits in 16.
    """
    nibbles(packed[..., 4:], 16, out)
    fifth = np.unpackbits(packed[..., :4], axis=-1, bitorder="little")
    fifth <<= 4
    out |= fifth


_TABLE = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
_LOW, _HIGH = np.tile(_TABLE, 16), np.repeat(_TABLE, 16)  # by the whole byte


def looked_up(packed: Blocks, out: NDArray[Any]) -> None:
    """Write the numbers that the indices of IQ4_NL and IQ4_XS stand for to `out`, int8.

    `packed` is `[rows, blocks, bytes]`, where 16 bytes hold the 32 indices of a group.
    """
    runs = packed.reshape(*packed.shape[:2], -1, 16)
    pairs = out.reshape(*out.shape[:2], -1, 2, 16)
    pairs[..., 0, :] = _LOW[runs]
    pairs[..., 1, :] = _HIGH[runs]
