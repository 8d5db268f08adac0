"""Chooses the bits of each matrix of a base, packs it, and notes what that costs."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from server.engine.backends.matrix import Matrix, Parameters, Projection
from server.engine.backends.native.packing import (
    BLOCK,
    Bits,
    Codes,
    PackedMatrix,
    blocks_of,
    empty_matrix,
    pack,
    pack_rows,
    quantise,
    relative_error,
)
from server.engine.backends.native.source_precision import is_exact
from server.engine.backends.pytorch.convert import ConvertedBase

_ROWS = 64  # of a matrix, to tell whether 4 bits hold it
_CHUNK = 1 << 18  # weights of a large matrix at a time, so that they stay in the cache


class MatrixPacker:
    """Packs matrices and notes the relative errors, by the kind of matrix.

    `bits` are 4 or 8. With `exact`, only what 4 bits hold exactly has 4 bits, and all else 8.
    """

    def __init__(self, bits: Bits, exact: bool) -> None:
        self._bits = bits
        self._exact = bits == 4 and exact
        self.errors: dict[str, float] = {}
        self._packed: dict[Bits, dict[str, list[float]]] = {}

    def matrix(self, kind: str, part: Projection, input_major: bool = False) -> PackedMatrix:
        """Pack a linear layer."""
        codes, error = self.codes(part.matrix)
        self._note(kind, codes.bits, error)
        return pack(codes, part.bias, input_major)

    def pair(self, kind: str, gate: Projection, up: Projection) -> PackedMatrix:
        """Pack two linear layers of one shape: 16 outputs of `gate`, their 16 of `up`, and so on.

        The last ones are padded to a block.
        """
        halves = [self.codes(one.matrix) for one in (gate, up)]
        bits = max(codes.bits for codes, _ in halves)
        outputs, rows = gate.matrix.outputs, -gate.matrix.outputs % BLOCK
        bias = None
        if gate.bias is not None and up.bias is not None:
            bias = interleave(gate.bias, up.bias)
        packed = empty_matrix(2 * (outputs + rows), halves[0][0].inputs, bits, bias)
        for place, (one, half) in enumerate(zip((gate, up), halves, strict=True)):
            codes, error = half if half[0].bits == bits else _in_bits(one.matrix, bits)
            pack_rows(codes, blocks_of(packed)[place::2])
            self._note(kind, bits, error)
        return packed

    def rows(
        self, kind: str, base: ConvertedBase, module: nn.Linear | nn.Embedding
    ) -> PackedMatrix:
        """Read and pack a large matrix, some rows at a time."""
        outputs, inputs = module.weight.shape
        bits, step = self._bits_of(base.parameters, module), max(1, _CHUNK // inputs // BLOCK)
        bias = base.parameters.bias(module) if isinstance(module, nn.Linear) else None
        packed = empty_matrix(outputs, inputs, bits, bias)
        blocks = blocks_of(packed)
        worst = 0.0
        for first in range(0, len(blocks), step):
            rows = slice(first * BLOCK, min(outputs, (first + step) * BLOCK))
            codes, error = _in_bits(base.parameters.matrix(module, rows), bits)
            pack_rows(codes, blocks[first : first + step])
            base.parameters.release(module)
            worst = max(worst, error)
        self._note(kind, bits, worst)
        return packed

    def codes(self, matrix: Matrix) -> tuple[Codes, float]:
        """Return a matrix in the codes that it is served in, and their relative error."""
        if not self._exact:
            return _in_bits(matrix, self._bits)
        if matrix.codes is not None:
            return matrix.codes, matrix.error
        values = matrix.values()
        return _in_bits(Matrix(values), 4 if is_exact(values, 4, _ROWS) else 8)

    def summary(self) -> str:
        """Say how many matrices have 4 and 8 bits, and the largest relative error of each kind."""
        return ", ".join(
            f"{sum(map(len, kinds.values()))} in {bits} bits ("
            + ", ".join(f"{kind} {max(errors):.1g}" for kind, errors in kinds.items())
            + ")"
            for bits, kinds in sorted(self._packed.items())
        )

    def _bits_of(self, parameters: Parameters, module: nn.Linear | nn.Embedding) -> Bits:
        if not self._exact:
            return self._bits
        return 4 if parameters.exact_bits(module) == 4 else 8

    def _note(self, kind: str, bits: Bits, error: float) -> None:
        self.errors[kind] = max(self.errors.get(kind, 0.0), error)
        self._packed.setdefault(bits, {}).setdefault(kind, []).append(error)


def _in_bits(matrix: Matrix, bits: Bits) -> tuple[Codes, float]:
    """Return the source's codes if they have so many bits, else the nearest, and their error."""
    if matrix.codes is not None and matrix.codes.bits == bits:
        return matrix.codes, matrix.error
    values = matrix.values()
    codes = quantise(values, bits)
    return codes, relative_error(codes, values)


def interleave(gates: Tensor, ups: Tensor) -> Tensor:
    """Return 16 of `gates`, 16 of `ups`, and so on, `[2 * neurons, ...]`.

    Both are `[neurons, ...]`; neurons are padded with zeros to a multiple of 16.
    """
    rows = -len(gates) % BLOCK
    sides = [F.pad(t, (0, 0) * (t.dim() - 1) + (0, rows)) for t in (gates, ups)]
    return torch.stack([t.unflatten(0, (-1, BLOCK)) for t in sides], dim=1).flatten(0, 2)
