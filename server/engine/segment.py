"""What a decoder is given: some tokens of one sequence."""

from dataclasses import dataclass

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
