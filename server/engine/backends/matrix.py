"""Matrices on their way into a serving layout: values, or the codes that their file holds."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from server.engine.backends.native.packing import GROUP, Bits, Codes


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix `[outputs, inputs]` in floats or in codes.

    `error` is the relative error of the codes against the values of the file.
    """

    held: Tensor | Codes
    error: float = 0.0

    @property
    def codes(self) -> Codes | None:
        """Return the codes, or None where only values are known."""
        return self.held if isinstance(self.held, Codes) else None

    @property
    def outputs(self) -> int:
        """Return the number of outputs."""
        return self.held.shape[0]

    def values(self) -> Tensor:
        """Return the values; those of codes are fp32."""
        return self.held.values() if isinstance(self.held, Codes) else self.held

    def columns(self, order: Tensor | None) -> "Matrix":
        """Put the inputs in an order, int64 `[inputs]`. Codes stay codes if whole groups move."""
        if order is None:
            return self
        if self.codes is None:
            return Matrix(self.values()[:, order])
        groups = order[::GROUP] // GROUP
        whole = (groups * GROUP)[:, None] + torch.arange(GROUP)
        if len(order) % GROUP or not torch.equal(order, whole.flatten()):
            return Matrix(self.values()[:, order])
        moved = _each(
            lambda part: part.unflatten(1, (-1, part.shape[1] // len(groups)))[:, groups].flatten(1)
        )
        return replace(self, held=moved(self.codes))


def join_rows(join: Callable[..., Tensor], *matrices: Matrix) -> Matrix:
    """Join matrices by a function that moves rows of tensors `[outputs, ...]`, and nothing else.

    The result is in codes if all are, in the same number of bits.
    """
    codes = [matrix.codes for matrix in matrices]
    error = max(matrix.error for matrix in matrices)
    first = codes[0]
    if first is not None and all(one is not None and one.bits == first.bits for one in codes):
        return Matrix(_each(join)(*(one for one in codes if one is not None)), error)
    values = [matrix.values() for matrix in matrices]
    if any(one is not None for one in codes):
        values = [one.float() for one in values]
    return Matrix(join(*values))


def _each(move: Callable[..., Tensor]) -> Callable[..., Codes]:
    """Return a function that moves the rows of codes, scales and minima alike."""

    def moved(*parts: Codes) -> Codes:
        first = parts[0]
        minima = None
        if first.minima is not None:
            minima = move(*(part.minima for part in parts))
        codes, scales = (
            move(*(part.codes for part in parts)),
            move(*(part.scales for part in parts)),
        )
        return Codes(first.bits, codes, scales, minima, first.inputs)

    return moved


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer: its matrix `[outputs, inputs]` and its bias `[outputs]`, if it has one."""

    matrix: Matrix
    bias: Tensor | None = None


class Parameters(Protocol):
    """Reads the parameters of an outline, a model without weights, module by module."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of values."""
        ...

    def matrix(self, module: nn.Linear | nn.Embedding, rows: slice | None = None) -> Matrix:
        """Return a module's weight, or some rows of it."""
        ...

    def bias(self, module: nn.Linear) -> Tensor | None:
        """Return a module's bias `[outputs]`, if it has one."""
        ...

    def norm(self, module: nn.Module) -> Tensor:
        """Return the weight of a norm `[size]`."""
        ...

    def exact_bits(self, module: nn.Linear | nn.Embedding) -> Bits | None:
        """Return 4 or 8 if so many bits hold a module's weight exactly, else None."""
        ...

    def is_quantised(self, module: nn.Linear | nn.Embedding) -> bool:
        """Return whether the file holds a module's weight in blocks of codes."""
        ...

    def release(self, module: nn.Module) -> None:
        """Let go of the memory that reading a module's parameters mapped."""
        ...
