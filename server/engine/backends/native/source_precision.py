"""In how many bits a source holds its weights, matrix by matrix."""

from collections.abc import Collection, Iterable

from torch import Tensor

from pruners.architecture import LocatedModel
from server.engine.backends.native.packing import Bits, error, quantise

_EXACT = 1e-6  # relative: a source that was quantised the same way
_ROWS = 16  # of a matrix; all were quantised alike


def is_held(weight: Tensor, bits: Bits, rows: int = _ROWS) -> bool:
    """Whether a matrix holds what such codes stand for exactly, by some of its rows."""
    some = weight[:: max(1, len(weight) // rows)]
    return error(quantise(some, bits), some) <= _EXACT


def mostly_4bit(matrices: Iterable[Tensor]) -> bool:
    """Whether most of the values lie in matrices that 4 bits hold exactly."""
    exact = total = 0
    for matrix in matrices:
        total += matrix.numel()
        exact += matrix.numel() if is_held(matrix, 4) else 0
    return 2 * exact > total


def source_bits(located: LocatedModel, quantised: Collection[str]) -> Bits | None:
    """Return 4 or 8 if most of the layers' values are quantised in the source, else None.

    `quantised` names parameters known to be so, such as K-quants, that neither 4 nor 8 bits hold
    exactly. It is 4 if 4 bits hold at least one matrix exactly.
    """
    names = {id(parameter): name for name, parameter in located.model.named_parameters()}
    total = known = 0
    some_4bit = False
    for layer in located.layers:
        attention, mlp = layer.attention, layer.mlp
        for module in (attention.q, attention.k, attention.v, attention.o, *mlp.inputs, mlp.down):
            weight = module.weight
            in_4bit = is_held(weight, 4)
            some_4bit = some_4bit or in_4bit
            total += weight.numel()
            if in_4bit or names[id(weight)] in quantised or is_held(weight, 8):
                known += weight.numel()
    if 2 * known <= total:
        return None
    return 4 if some_4bit else 8
