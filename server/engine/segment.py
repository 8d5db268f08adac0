"""What a decoder is given: some tokens of one sequence."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.cache.kv_cache import SequenceCache


@dataclass(slots=True)
class Segment:
    """Consecutive tokens of one sequence to process now. Room in `cache` is reserved already.

    Hidden states of the last `read` tokens are wanted; None stands for all of them. Those of the
    others may be wrong: the last layer only caches their keys and values.
    """

    tokens: list[int]
    cache: SequenceCache
    variant: VariantSpec
    read: int | None = None


def check_rows(
    tokens: list[int],
    furthest: int,
    vocabulary: int,
    rope: Mapping[str | None, tuple[Tensor, Tensor]],
) -> None:
    """Raise `IndexError` if a token or the furthest position is behind the end of a table.

    Kernels read there whatever they find.
    """
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        raise IndexError(f"a token is not among the vocabulary's {vocabulary}")
    for cos, _ in rope.values():
        if furthest >= len(cos):
            raise IndexError(f"position {furthest} is not among {len(cos)}")
