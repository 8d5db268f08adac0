"""Weights in 4 or 8 bits: groups of 32 inputs share a scale (and, in 4 bits, a minimum).

`pack` lays codes out as the kernels' header describes: blocks of 16 outputs by 32 inputs, so that a
prefix of outputs or of inputs, in multiples of a block, is a view of the same buffer.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

GROUP = 32
BLOCK = 16
Bits = int  # 4 or 8
LAYOUT = 1
"""Raised when what is packed, or how, changes: packed weights are kept in files."""
_CHUNK = 1 << 18  # weights that are computed at a time, so that they stay in the cache


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantised matrix: `value = code * scale + minimum`.

    `codes` are `[outputs, inputs]`, `scales` and `minima` `[outputs, inputs / 32]`; inputs are
    padded with zeros to whole groups, `inputs` is their number before. Codes of 4 bits are uint8
    0..15 with fp16 scales and minima, codes of 8 bits int8 -127..127 with fp16 scales only.
    """

    bits: Bits
    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    inputs: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of outputs and of inputs, padded."""
        return len(self.codes), self.codes.shape[1]

    def rows(self, part: slice) -> "Codes":
        """Return some of the outputs."""
        minima = None if self.minima is None else self.minima[part]
        return Codes(self.bits, self.codes[part], self.scales[part], minima, self.inputs)

    def values(self) -> Tensor:
        """Return the values of the codes, fp32 `[outputs, inputs]`."""
        groups = self.codes.unflatten(1, (-1, GROUP)).float()
        values = groups * self.scales.float()[..., None]
        if self.minima is not None:
            values = values + self.minima.float()[..., None]
        return values.flatten(1)[:, : self.inputs]


def quantise(weight: Tensor, bits: Bits) -> Codes:
    """Round a matrix `[outputs, inputs]` of floats to the nearest codes of 4 or 8 bits.

    Values that were dequantised from GGUF's Q4_0, Q4_1 (in 4 bits) or Q8_0 (in 8) are restored
    exactly. The scale is `(max - min) / 15` of a group or its value of largest size over -8,
    whichever has the smaller error; in 8 bits it is the largest size over 127.
    """
    rows = max(1, _CHUNK // max(1, weight.shape[1]))
    parts = [_quantise_rows(part, bits) for part in weight.split(rows)]
    if len(parts) == 1:
        return parts[0]
    minima = [part.minima for part in parts if part.minima is not None]
    return Codes(
        bits,
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(minima) if minima else None,
        weight.shape[1],
    )


def _quantise_rows(weight: Tensor, bits: Bits) -> Codes:
    padded = F.pad(weight.float(), (0, -weight.shape[1] % GROUP))
    groups = padded.unflatten(1, (-1, GROUP))
    if bits == 8:
        scale = (groups.abs().amax(-1) / 127).half()
        codes = (groups / _nonzero(scale.float())[..., None]).round().clamp(-127, 127)
        return Codes(8, codes.flatten(1).to(torch.int8), scale, None, weight.shape[1])
    lowest = groups.amin(-1)
    ranged = _codes4(groups, ((groups.amax(-1) - lowest) / 15).half(), lowest.half())
    if bool((ranged[3] <= 1e-12 * groups.pow(2).sum(-1)).all()):  # a Q4_1 source
        return Codes(4, ranged[0].flatten(1).to(torch.uint8), *ranged[1:3], weight.shape[1])
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))[..., 0]
    scale = (largest / -8).half()
    centred = _codes4(groups, scale, -8 * scale)
    better = (centred[3] < ranged[3])[..., None]
    codes = torch.where(better, centred[0], ranged[0])
    scales = torch.where(better[..., 0], centred[1], ranged[1])
    minima = torch.where(better[..., 0], centred[2], ranged[2])
    return Codes(4, codes.flatten(1).to(torch.uint8), scales, minima, weight.shape[1])


def _codes4(
    groups: Tensor, scale: Tensor, minimum: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes, scale, minimum and the squared error of each group.

    `groups` and the codes are `[outputs, groups, 32]`, all others `[outputs, groups]`.
    """
    factor, shift = scale.float()[..., None], minimum.float()[..., None]
    codes = ((groups - shift) / _nonzero(factor)).round().clamp(0, 15)
    error = (codes * factor + shift - groups).pow(2).sum(-1)
    return codes, scale, minimum, error


def _nonzero(scale: Tensor) -> Tensor:
    """Replace zeros in a tensor of any shape by ones, so that it can be divided by."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def relative_error(codes: Codes, weight: Tensor) -> float:
    """Return the norm of the rounding errors over that of `weight`, `[outputs, inputs]`.

    At most 2,047 rows are compared.
    """
    rows = slice(None, None, max(1, len(weight) // 1024))
    wanted = weight[rows].float()
    error = codes.rows(rows).values() - wanted
    return float(error.norm() / wanted.norm().clamp_min(1e-30))


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix `[outputs, inputs]` as the native kernels read it.

    `data` is bytes, `bias` fp32 `[outputs]` or None. With `input_major` the blocks of one input
    group lie side by side, else those of one output block.
    """

    data: Tensor
    bias: Tensor | None
    outputs: int
    inputs: int
    bits: Bits
    input_major: bool

    def tensors(self) -> list[Tensor]:
        """Return the bytes and the bias, if there is one."""
        return [self.data] if self.bias is None else [self.data, self.bias]


def pack(codes: Codes, bias: Tensor | None = None, input_major: bool = False) -> PackedMatrix:
    """Lay codes out in blocks for the kernels; `bias` is `[outputs]` or None."""
    matrix = empty_matrix(len(codes.codes), codes.inputs, codes.bits, bias, input_major)
    pack_rows(codes, blocks_of(matrix))
    return matrix


def empty_matrix(
    outputs: int, inputs: int, bits: Bits, bias: Tensor | None, input_major: bool = False
) -> PackedMatrix:
    """Return a matrix whose bytes are not written yet; `bias` is `[outputs]` or None."""
    blocks = -(-outputs // BLOCK) * -(-inputs // GROUP)
    data = torch.empty(blocks * _block_bytes(bits), dtype=torch.uint8)
    bias = None if bias is None else bias.float().contiguous()
    return PackedMatrix(data, bias, outputs, inputs, bits, input_major)


def blocks_of(matrix: PackedMatrix) -> Tensor:
    """Return the bytes as a view, uint8 `[output blocks, input groups, bytes of a block]`."""
    blocks, groups = -(-matrix.outputs // BLOCK), -(-matrix.inputs // GROUP)
    if matrix.input_major:
        return matrix.data.view(groups, blocks, -1).transpose(0, 1)
    return matrix.data.view(blocks, groups, -1)


def _block_bytes(bits: Bits) -> int:
    numbers = 2 if bits == 4 else 1  # in fp16: scales, and minima in 4 bits
    return BLOCK * (GROUP * bits // 8 + 2 * numbers)


def pack_rows(codes: Codes, blocks: Tensor) -> None:
    """Write rows into blocks, uint8 `[output blocks, input groups, bytes of a block]`.

    The last rows are padded to a block.
    """
    outputs, inputs = codes.shape
    step = max(1, _CHUNK // max(1, inputs) // BLOCK)
    for first in range(0, -(-outputs // BLOCK), step):
        rows = codes.rows(slice(first * BLOCK, (first + step) * BLOCK))
        _pack_rows(rows, blocks[first : first + step])


def _pack_rows(codes: Codes, blocks: Tensor) -> None:
    rows = -len(codes.codes) % BLOCK
    whole = F.pad(codes.codes, (0, 0, 0, rows)) if rows else codes.codes
    if codes.bits == 4:
        assert codes.minima is not None
        # 16 codes of each half of a group at once, in two words of 8 bytes.
        words = whole.contiguous().view(torch.int64).unflatten(1, (-1, 4))
        lines = words[..., :2] | words[..., 2:] << 4
        floats = [codes.scales, codes.minima]
    else:
        lines, floats = whole.contiguous().view(torch.int64), [codes.scales]
    # [output block, 16, group, lines] of 4 bytes -> [output block, group, lines, 16]
    fours = lines.contiguous().view(torch.int32).reshape(len(whole), codes.scales.shape[1], -1)
    fours = fours.unflatten(0, (-1, BLOCK)).permute(0, 2, 3, 1)
    size = fours.shape[2] * BLOCK * 4
    blocks[..., :size].view(torch.int32).unflatten(2, (-1, BLOCK)).copy_(fours)
    for index, part in enumerate(floats):
        start = size + index * BLOCK * 2
        halves = F.pad(part, (0, 0, 0, rows)).unflatten(0, (-1, BLOCK)).transpose(1, 2)
        blocks[..., start : start + BLOCK * 2].view(torch.float16).copy_(halves)


class PackedRows:
    """The rows of a packed matrix of 8 bits, unpacked where they are asked for."""

    def __init__(self, matrix: PackedMatrix) -> None:
        assert matrix.bits == 8
        self._matrix = matrix
        self.shape = matrix.outputs, -(-matrix.inputs // GROUP) * GROUP
        """The numbers of outputs and of inputs, padded."""

    def rows(self, part: slice) -> Codes:
        """Return some of the outputs, from a multiple of 16 on."""
        start, stop, every = part.indices(self._matrix.outputs)
        assert start % BLOCK == 0
        return _unpack(self._matrix, start, stop).rows(slice(None, None, every))


def unpack(matrix: PackedMatrix) -> Codes:
    """Return the codes of a packed matrix of 8 bits."""
    return PackedRows(matrix).rows(slice(None))


def _unpack(matrix: PackedMatrix, start: int, stop: int) -> Codes:
    groups = -(-matrix.inputs // GROUP)
    data = blocks_of(matrix)[start // BLOCK : -(-stop // BLOCK)]
    codes, scales = data[..., : BLOCK * GROUP], data[..., BLOCK * GROUP :]
    # [output block, group, 8 lines, 16, 4] -> [output block, 16, group, 32]
    lines = codes.unflatten(2, (8, BLOCK, 4)).permute(0, 3, 1, 2, 4)
    flat = lines.reshape(len(data) * BLOCK, groups * GROUP).view(torch.int8)
    scale = scales.contiguous().view(torch.float16).transpose(1, 2).flatten(0, 1)
    return Codes(8, flat[: stop - start], scale[: stop - start], None, matrix.inputs)
