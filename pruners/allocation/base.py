"""What every allocation shares: blocks of units, and whole numbers that meet a total."""

from collections.abc import Sequence

from pruners.support.errors import UserError

MULTIPLE = 32
"""Widths of FFN prefixes are multiples of it: the block of packed 4-bit weights."""


class AllocationError(UserError):
    """A budget or a width that cannot be met, or a missing tool. One clear line."""


def blocks_of(full: int, multiple: int) -> int:
    """How many blocks a full layer has. Raises `AllocationError` if they do not fill it."""
    if full % multiple:
        raise AllocationError(f"a width of {full} is not a multiple of {multiple}")
    return full // multiple


def blocks_to_keep(layers: int, blocks: int, keep: float) -> int:
    """The nearest number of blocks to the share `keep` of all; at least one a layer."""
    total = round(layers * blocks * keep)
    if not layers <= total <= layers * blocks:
        raise AllocationError(f"cannot keep {keep:g} of {layers} layers of {blocks} blocks")
    return total


def apportion(wanted: Sequence[float], total: int, highest: int) -> list[int]:
    """Whole numbers from 1 to `highest`, near `wanted`, whose sum is `total`.

    Largest remainders first; ties go to the earlier layer, on which more of the model rests.
    """
    given = [min(max(int(want), 1), highest) for want in wanted]
    while sum(given) < total:
        open_ = [i for i, value in enumerate(given) if value < highest]
        given[max(open_, key=lambda i: wanted[i] - given[i])] += 1
    while sum(given) > total:
        open_ = [i for i, value in enumerate(given) if value > 1]
        given[min(reversed(open_), key=lambda i: wanted[i] - given[i])] -= 1
    return given
