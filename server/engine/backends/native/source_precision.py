"""Finds out in how many bits the source of a model stores its weights, matrix by matrix."""

from collections.abc import Collection, Iterable

from torch import Tensor

from pruners.architecture import LocatedModel
from server.engine.backends.native.packing import Bits, quantise, relative_error

_MAX_ERROR = 1e-6  # relative: a source that was quantised in the same way
_ROWS = 16  # of a matrix, all of which were quantised alike


def is_exact(weight: Tensor, bits: Bits, rows: int = _ROWS) -> bool:
    """Return whether codes of `bits` bits hold a matrix `[outputs, inputs]` exactly.

    About `rows` of its rows are tested.
    """
    sample = weight[:: max(1, len(weight) // rows)]
    return relative_error(quantise(sample, bits), sample) <= _MAX_ERROR


def mostly_4bit(matrices: Iterable[Tensor]) -> bool:
    """Return whether most values of the matrices `[outputs, inputs]` are exact in 4 bits."""
    exact = total = 0
    for matrix in matrices:
        total += matrix.numel()
        exact += matrix.numel() if is_exact(matrix, 4) else 0
    return 2 * exact > total


def source_bits(located: LocatedModel, quantised: Collection[str]) -> Bits | None:
    """Return 4 or 8 if most values of the layers are quantised in the source, else None.

    It is 4 if at least one matrix is exact in 4 bits. `quantised` names parameters that are known
    to be quantised, such as K-quants, which neither 4 nor 8 bits hold exactly.
    """
    names = {id(parameter): name for name, parameter in located.model.named_parameters()}
    total = known = 0
    some_4bit = False
    for layer in located.layers:
        attention, mlp = layer.attention, layer.mlp
        for module in (attention.q, attention.k, attention.v, attention.o, *mlp.inputs, mlp.down):
            weight = module.weight
            in_4bit = is_exact(weight, 4)
            some_4bit = some_4bit or in_4bit
            total += weight.numel()
            if in_4bit or names[id(weight)] in quantised or is_exact(weight, 8):
                known += weight.numel()
    if 2 * known <= total:
        return None
    return 4 if some_4bit else 8
