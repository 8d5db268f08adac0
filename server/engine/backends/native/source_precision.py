"""Finds out in how many bits the source of a model stores its weights, matrix by matrix."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from pruners.architecture import LocatedModel
from server.engine.backends.matrix import Parameters
from server.engine.backends.native.packing import Bits, quantise, relative_error

_MAX_ERROR = 1e-6  # relative: a source that was quantised in the same way
_ROWS = 16  # of a matrix, all of which were quantised alike


def is_exact(weight: Tensor, bits: Bits, rows: int = _ROWS) -> bool:
    """Return whether codes of `bits` bits hold a matrix `[outputs, inputs]` exactly.

    About `rows` of its rows are tested.
    """
    sample = weight[:: max(1, len(weight) // rows)]
    return relative_error(quantise(sample, bits), sample) <= _MAX_ERROR


@dataclass(frozen=True, slots=True)
class SourceBits:
    """How many weights of the layers there are, in 4 bits, and in 4, 8 or a few others."""

    weights: int
    in_4: int
    quantised: int

    @property
    def mostly_4(self) -> bool:
        """Return whether most weights are in 4 bits."""
        return 2 * self.in_4 > self.weights

    @property
    def bits(self) -> Bits | None:
        """Return 4 or 8 if most weights are quantised, else None: 4 if any are in 4 bits."""
        if 2 * self.quantised <= self.weights:
            return None
        return 4 if self.in_4 else 8


def source_bits(located: LocatedModel, parameters: Parameters) -> SourceBits:
    """Count the weights of an outline's layers by how the source stores them."""
    weights = in_4 = quantised = 0
    for module in _matrices(located):
        bits, size = parameters.exact_bits(module), module.weight.numel()
        weights += size
        in_4 += size * (bits == 4)
        quantised += size * (bits is not None or parameters.is_quantised(module))
    return SourceBits(weights, in_4, quantised)


def _matrices(located: LocatedModel) -> Iterator[nn.Linear]:
    for layer in located.layers:
        attention, mlp = layer.attention, layer.mlp
        yield from (*attention.inputs, attention.o, *mlp.inputs, mlp.down)
