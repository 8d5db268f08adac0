"""Chooses the bits of each matrix of a base, packs it, and notes what that costs."""

import torch
from torch import nn

from server.engine.backends.matrix import Matrix, Parameters, Projection
from server.engine.backends.native.packing import (
    BLOCK,
    Bits,
    Codes,
    PackedMatrix,
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

    def rows(
        self, kind: str, base: ConvertedBase, module: nn.Linear | nn.Embedding
    ) -> PackedMatrix:
        """Read and pack a large matrix, some rows at a time."""
        outputs, inputs = module.weight.shape
        bits, step = self._bits_of(base.parameters, module), max(1, _CHUNK // inputs // BLOCK)
        data, error = torch.empty(0), 0.0
        for start in range(0, outputs, step * BLOCK):
            rows = slice(start, min(outputs, start + step * BLOCK))
            codes, lost = _in_bits(base.parameters.matrix(module, rows), bits)
            blocks, error = pack_rows(codes), max(error, lost)
            if not start:
                data = blocks.new_empty(-(-outputs // BLOCK), *blocks.shape[1:])
            data[start // BLOCK :][: len(blocks)] = blocks
            base.parameters.release(module)
        self._note(kind, bits, error)
        bias = base.parameters.bias(module) if isinstance(module, nn.Linear) else None
        bias = None if bias is None else bias.float()
        return PackedMatrix(data.flatten(), bias, outputs, inputs, bits, False)

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
