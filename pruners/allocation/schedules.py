"""Widths by a rule of depth alone."""

import math

from pruners.allocation.base import MULTIPLE, apportion, blocks_of, blocks_to_keep


def uniform(layers: int, full: int, keep: float, multiple: int = MULTIPLE) -> tuple[int, ...]:
    """The same share of `full` units in every layer, `[layers]`.

    The sum is the nearest multiple to `keep` of all units; earlier layers take what is left over.
    Raises `AllocationError` if that is less than one block a layer, or if blocks do not fill one.
    """
    blocks = blocks_of(full, multiple)
    total = blocks_to_keep(layers, blocks, keep)
    return tuple(multiple * n for n in apportion([total / layers] * layers, total, blocks))


def increasing(layers: int, full: int, keep: float, multiple: int = MULTIPLE) -> tuple[int, ...]:
    """A removed share that grows as the logarithm of depth, from nothing in the first layer.

    The incremental pruning ratio of SlimGPT (Ling et al. 2024, arXiv 2412.18110): errors made early
    pass through all that follows. `[layers]`; sums and errors as for `uniform`.
    """
    blocks = blocks_of(full, multiple)
    total = blocks_to_keep(layers, blocks, keep)
    growth = [math.log(layer + 1) for layer in range(layers)]
    removed = (layers * blocks - total) / max(sum(growth), 1e-9)
    wanted = [blocks - removed * share for share in growth]
    return tuple(multiple * n for n in apportion(wanted, total, blocks))
