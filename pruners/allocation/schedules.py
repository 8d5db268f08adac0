"""Widths by a rule of depth alone."""

import math

from pruners.allocation.base import MULTIPLE, apportion, count_blocks, count_kept_blocks


def uniform_widths(
    layers: int, full: int, keep: float, multiple: int = MULTIPLE
) -> tuple[int, ...]:
    """Return one width a layer that keeps the same share of `full` units everywhere.

    The sum is the multiple of `multiple` nearest to `keep` of all units; what does not divide
    evenly goes to earlier layers. Raises `AllocationError` if less than one block a layer would
    be left, or if `full` is not a multiple of `multiple`.
    """
    blocks = count_blocks(full, multiple)
    total = count_kept_blocks(layers, blocks, keep)
    return tuple(multiple * n for n in apportion([total / layers] * layers, total, blocks))


def increasing_widths(
    layers: int, full: int, keep: float, multiple: int = MULTIPLE
) -> tuple[int, ...]:
    """Return one width a layer; the share removed from layer l grows as log(l + 1), from l = 0.

    This is the incremental pruning ratio of SlimGPT (Ling et al. 2024, arXiv 2412.18110): an error
    in an early layer passes through all later ones. The sum is the multiple of `multiple` nearest
    to `keep` of all units. Raises `AllocationError` if less than one block a layer would be left,
    or if `full` is not a multiple of `multiple`.
    """
    blocks = count_blocks(full, multiple)
    total = count_kept_blocks(layers, blocks, keep)
    growth = [math.log(layer + 1) for layer in range(layers)]
    removed = (layers * blocks - total) / max(sum(growth), 1e-9)
    wanted = [blocks - removed * share for share in growth]
    return tuple(multiple * n for n in apportion(wanted, total, blocks))
