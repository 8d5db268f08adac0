"""Keys and values of finished sequences, kept while there is room and reused by new prompts.

An entry is found by its variant and its tokens, since each variant has keys and values of its own.
Sequences with a KV budget are not kept. A match is copied into the new sequence's region (a few
microseconds a token), so that regions stay contiguous and independent.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from pruners.variant import VariantSpec
from server.engine.cache.sequence_cache import SequenceCache

_MIN_TOKENS = 16  # a shorter prefix is computed as fast as it is copied
_MAX_ENTRIES = 64  # every prompt is compared with all of them


@dataclass(frozen=True, slots=True, eq=False)
class _CachedPrefix:
    """A finished sequence's region with its tokens, int32 in the machine's byte order."""

    variant: VariantSpec
    tokens: bytes
    cache: SequenceCache


class PrefixCache:
    """The regions of finished sequences, the least recently used first.

    Only the engine's thread changes it; it replaces the tuple of entries as a whole, so that
    `reusable` and `slots` may be called from any thread.
    """

    def __init__(self) -> None:
        self._entries: tuple[_CachedPrefix, ...] = ()

    @property
    def slots(self) -> int:
        """Return the number of slots that can be taken back."""
        return sum(entry.cache.size for entry in self._entries)

    def store(self, variant: VariantSpec, tokens: Sequence[int], cache: SequenceCache) -> None:
        """Take over the region of a finished sequence whose first tokens are `tokens`."""
        length = min(cache.cached, len(tokens))
        if not cache.complete or length < _MIN_TOKENS:
            cache.close()
            return
        cache.trim(length)
        encoded = _encoded(tokens[:length])
        for entry in self._entries:
            if entry.variant == variant and encoded.startswith(entry.tokens):
                self._drop(entry)  # the new entry contains it
        self._entries = (*self._entries, _CachedPrefix(variant, encoded, cache))
        if len(self._entries) > _MAX_ENTRIES:
            self.drop_oldest()

    def copy_longest(
        self, variant: VariantSpec, tokens: Sequence[int], cache: SequenceCache
    ) -> int:
        """Copy the longest stored prefix of `tokens` into an empty cache that has room for it.

        Return the number of copied tokens. The last token is never copied, since its logits are
        needed.
        """
        length, entry = self._longest(tokens).get(variant.name, (0, None))
        if entry is None:
            return 0
        self._entries = (*(other for other in self._entries if other is not entry), entry)
        cache.copy_from(entry.cache, length)
        return length

    def reusable(self, tokens: Sequence[int]) -> dict[str, int]:
        """Return how many tokens `copy_longest` would copy now, by the names of variants."""
        return {name: length for name, (length, _) in self._longest(tokens).items()}

    def drop_oldest(self) -> bool:
        """Give the least recently used region back; return False if there is none."""
        if not self._entries:
            return False
        self._drop(self._entries[0])
        return True

    def _longest(self, tokens: Sequence[int]) -> dict[str, tuple[int, _CachedPrefix]]:
        """Find the longest stored prefix by variant, where it is worth a copy."""
        encoded, longest = _encoded(tokens[:-1]), dict[str, tuple[int, _CachedPrefix]]()
        for entry in self._entries:
            length = _common_prefix(entry.tokens, encoded)
            name = entry.variant.name
            if length >= _MIN_TOKENS and (name not in longest or length > longest[name][0]):
                longest[name] = length, entry
        return longest

    def _drop(self, entry: _CachedPrefix) -> None:
        self._entries = tuple(other for other in self._entries if other is not entry)
        entry.cache.close()


def _encoded(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()


def _common_prefix(one: bytes, other: bytes) -> int:
    """Return how many leading tokens are equal, by bisection over comparisons of memory."""
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
