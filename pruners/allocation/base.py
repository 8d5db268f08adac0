"""What every allocation shares: blocks of units, and whole numbers that meet a total."""

from collections.abc import Sequence

from pruners.support.errors import UserError

MULTIPLE = 32
"""FFN widths are multiples of it: packed 4-bit weights stand in blocks of 32 inputs."""


class AllocationError(UserError):
    """A budget or a width cannot be met, or a tool is missing. The message is one line."""


def count_blocks(full: int, multiple: int) -> int:
    """Return how many blocks of `multiple` units a layer of `full` units has.

    Raises `AllocationError` if `full` is not a multiple of `multiple`.
    """
    if full % multiple:
        raise AllocationError(f"a width of {full} is not a multiple of {multiple}")
    return full // multiple


def count_kept_blocks(layers: int, blocks: int, keep: float) -> int:
    """Return the number of blocks nearest to the share `keep` of `layers * blocks`.

    Raises `AllocationError` if that is less than one block a layer, or more than there are.
    """
    total = round(layers * blocks * keep)
    if not layers <= total <= layers * blocks:
        raise AllocationError(f"cannot keep {keep:g} of {layers} layers of {blocks} blocks")
    return total


def apportion(wanted: Sequence[float], total: int, highest: int) -> list[int]:
    """Return whole numbers from 1 to `highest`, near `wanted`, whose sum is `total`.

    Largest remainders come first. Ties go to the earlier layer, since later layers depend on it.
    """
    given = [min(max(int(want), 1), highest) for want in wanted]
    while sum(given) < total:
        open_ = [i for i, value in enumerate(given) if value < highest]
        given[max(open_, key=lambda i: wanted[i] - given[i])] += 1
    while sum(given) > total:
        open_ = [i for i, value in enumerate(given) if value > 1]
        given[min(reversed(open_), key=lambda i: wanted[i] - given[i])] -= 1
    return given
