"""Finished sequences' keys and values, kept while there is room: a new prompt starts from them.

Keyed by the variant and the tokens, since another variant's keys and values are others. What an
eviction has been at is never kept. A hit copies the common prefix into the new sequence's region
(a few microseconds a token), so that sequences stay contiguous and independent.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pruners.variant import VariantSpec

if TYPE_CHECKING:
    from server.engine.cache.kv_cache import SequenceCache

_LEAST = 16  # tokens; less is computed as fast as it is found
_MOST = 64  # sequences; all are looked through for every prompt


@dataclass(slots=True)
class _Kept:
    variant: VariantSpec
    tokens: bytes  # four bytes each
    cache: "SequenceCache"


class PrefixCache:
    """The regions of finished sequences, the least recently used first."""

    def __init__(self) -> None:
        self._kept: list[_Kept] = []

    @property
    def slots(self) -> int:
        """Slots that are held here and may be taken back."""
        return sum(entry.cache.size for entry in self._kept)

    def keep(self, variant: VariantSpec, tokens: Sequence[int], cache: "SequenceCache") -> None:
        """Takes over the region of a sequence whose first tokens these are."""
        held = min(cache.held, len(tokens))
        if not cache.whole or held < _LEAST:
            cache.close()
            return
        cache.trim(held)
        coded = _coded(tokens[:held])
        for entry in list(self._kept):
            if entry.variant == variant and coded.startswith(entry.tokens):
                self._drop(entry)  # the new one holds all of it
        self._kept.append(_Kept(variant, coded, cache))
        if len(self._kept) > _MOST:
            self.drop_oldest()

    def fill(self, variant: VariantSpec, tokens: Sequence[int], cache: "SequenceCache") -> int:
        """Copies the longest kept beginning of `tokens` into an empty cache that has room.

        The last token is always left to compute, since its logits are wanted. Returns the number of
        tokens that need not be computed.
        """
        best, entry = self._longest(tokens).get(variant.name, (0, None))
        if entry is None:
            return 0
        self._kept.remove(entry)
        self._kept.append(entry)
        cache.copy_from(entry.cache, best)
        return best

    def reusable(self, tokens: Sequence[int]) -> dict[str, int]:
        """How many tokens `fill` would find now, by the names of variants that have any.

        May be called from any thread.
        """
        return {name: length for name, (length, _) in self._longest(tokens).items()}

    def drop_oldest(self) -> bool:
        """Gives a region back; False if there is none."""
        if not self._kept:
            return False
        self._drop(self._kept[0])
        return True

    def _longest(self, tokens: Sequence[int]) -> dict[str, tuple[int, _Kept]]:
        """The longest kept beginning of `tokens` by variant, where it is worth a copy."""
        wanted, found = _coded(tokens[:-1]), dict[str, tuple[int, _Kept]]()
        for entry in list(self._kept):  # the engine's thread may change it meanwhile
            length = _common(entry.tokens, wanted)
            name = entry.variant.name
            if length >= _LEAST and (name not in found or length > found[name][0]):
                found[name] = length, entry
        return found

    def _drop(self, entry: _Kept) -> None:
        self._kept.remove(entry)
        entry.cache.close()


def _coded(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()


def _common(one: bytes, other: bytes) -> int:
    """How many leading tokens are equal, by bisection over comparisons of memory."""
    low, high = 0, min(len(one), len(other)) // 4
    if one[: 4 * high] == other[: 4 * high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[4 * low : 4 * middle] == other[4 * low : 4 * middle]:
            low = middle
        else:
            high = middle
    return low
