"""Reads the parameters of an outline's modules from a checkpoint."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pruners.architecture import LinearView
from server.engine.backends.matrix import Matrix
from server.engine.backends.native.packing import Bits, relative_error
from server.engine.backends.native.source_precision import is_exact
from server.engine.loading.checkpoint import ModelCheckpoint
from server.engine.loading.checkpoint.base import EMBEDDING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLE = 16  # rows of a matrix, all of which were quantised alike


class CheckpointParameters:
    """Parameters by the modules of an outline (see `matrix.Parameters`).

    Values have `dtype`. With `coded`, matrices come in the codes of the source where it has any.
    """

    def __init__(
        self,
        outline: "PreTrainedModel",
        checkpoint: ModelCheckpoint,
        dtype: torch.dtype,
        coded: bool,
    ) -> None:
        self.dtype = dtype
        self._checkpoint = checkpoint
        self._coded = coded
        named = outline.named_parameters(remove_duplicate=False)
        stored = checkpoint.shapes.keys()
        self._names = {id(one): name if name in stored else EMBEDDING for name, one in named}
        self._errors: dict[str, float] = {}

    def matrix(self, module: nn.Linear | nn.Embedding, rows: slice | None = None) -> Matrix:
        """Return a module's weight, or some rows of it. Raises `UnsupportedModelError`."""
        name, rows = self._place(module, rows)
        codes = self._checkpoint.codes(name, rows) if self._coded else None
        if codes is not None:
            return Matrix(codes, self._error(name))
        return Matrix(self._checkpoint.read(name, rows).to(self.dtype))

    def bias(self, module: nn.Linear) -> Tensor | None:
        """Return a module's bias `[outputs]`, if it has one. Raises `UnsupportedModelError`."""
        if module.bias is None:
            return None
        if isinstance(module, LinearView):
            return self._vector(module.source.bias)[module.columns]
        return self._vector(module.bias)

    def norm(self, module: nn.Module) -> Tensor:
        """Return the weight of a norm `[size]`. Raises `UnsupportedModelError`."""
        return self._vector(next(module.parameters()))

    def exact_bits(self, module: nn.Linear | nn.Embedding) -> Bits | None:
        """Return 4 or 8 if so many bits hold a module's weight exactly, else None.

        Where the file has no codes, the values of a few rows are tested.
        """
        name, _ = self._place(module)
        bits = self._checkpoint.code_bits(name)
        if bits is not None:
            return bits
        sample = self._checkpoint.read(name, self._sample(name))
        return next((bits for bits in (4, 8) if is_exact(sample, bits)), None)

    def is_quantised(self, module: nn.Linear | nn.Embedding) -> bool:
        """Return whether the file holds a module's weight in blocks of codes."""
        return self._checkpoint.is_quantised(self._place(module)[0])

    def release(self, module: nn.Module) -> None:
        """Let go of the memory that reading a module's parameters mapped."""
        for parameter in module.parameters():
            self._checkpoint.release(self._name(parameter))

    def _place(
        self, module: nn.Linear | nn.Embedding, rows: slice | None = None
    ) -> tuple[str, slice | None]:
        """Return the name of the parameter that holds a module's weight, and which of its rows."""
        if isinstance(module, LinearView):
            return self._name(module.source.weight), module.columns
        return self._name(module.weight), rows

    def _name(self, parameter: Tensor) -> str:
        return self._names[id(parameter)]

    def _vector(self, parameter: Tensor) -> Tensor:
        return self._checkpoint.read(self._name(parameter)).to(self.dtype)

    def _sample(self, name: str) -> Tensor:
        """Return the indices of a few rows from all over a matrix, int64 `[rows]`."""
        rows = self._checkpoint.shapes[name][0]
        return torch.arange(0, rows, max(1, rows // _SAMPLE))

    def _error(self, name: str) -> float:
        """Return the relative error of a matrix's codes, from a few rows."""
        if name not in self._errors:
            rows = self._sample(name)
            codes, values = self._checkpoint.codes(name, rows), self._checkpoint.read(name, rows)
            self._errors[name] = 0.0 if codes is None else relative_error(codes, values)
        return self._errors[name]
