"""Keys and values of finished sequences, kept while there is room and reused by new prompts.

An entry is found by its variant and its tokens, since each variant has keys and values of its own.
It knows how deep each of its tokens was read, and serves only prompts that ask for no more. A token
that was read in full behind shallow ones is none that the base would have computed: since what is
served is a prefix, whoever reads in full starts from tokens before the first shallow one.
Sequences with a KV budget are not kept. A match is copied into the new sequence's region (a few
microseconds a token), so that regions stay contiguous and independent.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pruners.variant import VariantSpec
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.reading_depth import ReadingDepths

_MIN_TOKENS = 16  # a shorter prefix is computed as fast as it is copied
_MAX_ENTRIES = 64  # every prompt is compared with all of them


Reusable = dict[tuple[str, str | None], int]
"""Tokens of a prompt that are cached, by the names of a variant and of a reader; None stands for
reading in full."""


@dataclass(frozen=True, slots=True, eq=False)
class _CachedPrefix:
    """A finished sequence's region with its tokens, int32 in the machine's byte order.

    `depths` is how deep each token was read, as `ReadingDepths` has it.
    """

    variant: VariantSpec
    tokens: bytes
    depths: bytes
    cache: SequenceCache


@dataclass(frozen=True, slots=True)
class WantedPrefix:
    """What a sequence starts from: its variant, its tokens, and how deep each of them is read.

    With `exact` a token that was read deeper does not serve: a sequence that was preempted is
    computed again as it was.
    """

    variant: VariantSpec
    tokens: Sequence[int]
    depths: bytes
    exact: bool = False


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

    def store(
        self, variant: VariantSpec, tokens: Sequence[int], depths: bytes, cache: SequenceCache
    ) -> None:
        """Take over the region of a finished sequence whose first tokens are `tokens`.

        `depths` is how deep each of them was read.
        """
        length = min(cache.cached, len(tokens))
        if not cache.complete or length < _MIN_TOKENS:
            cache.close()
            return
        cache.trim(length)
        new = _CachedPrefix(variant, _encoded(tokens[:length]), depths[:length], cache)
        for entry in self._entries:
            contained = entry.variant == variant and new.tokens.startswith(entry.tokens)
            if contained and _deep_enough(new.depths, entry.depths) == len(entry.depths):
                self._drop(entry)
        self._entries = (*self._entries, new)
        if len(self._entries) > _MAX_ENTRIES:
            self.drop_oldest()

    def copy_longest(self, wanted: WantedPrefix, cache: SequenceCache) -> bytes:
        """Copy the longest stored prefix of a history into an empty cache that has room for it.

        Return the depths of the copied tokens. The last token is never copied, since its logits are
        needed.
        """
        best, source = 0, None
        for length, entry in self._matches(wanted.tokens):
            if entry.variant.name == wanted.variant.name:
                length = _deep_enough(entry.depths[:length], wanted.depths, wanted.exact)
                if length >= _MIN_TOKENS and length > best:
                    best, source = length, entry
        if source is None:
            return b""
        self._entries = (*(other for other in self._entries if other is not source), source)
        cache.copy_from(source.cache, best)
        return source.depths[:best]

    def reusable(self, tokens: Sequence[int], reading: ReadingDepths) -> Reusable:
        """Return how many tokens of a prompt `copy_longest` would copy now.

        What is left out has none. Called from any thread.
        """
        found: Reusable = {}
        matches = list(self._matches(tokens))
        for name, reader in reading.readers.items() if matches else ():
            depths = reading.of(tokens, reader)
            for length, entry in matches:
                length = _deep_enough(entry.depths[:length], depths)
                key = entry.variant.name, name
                if length >= _MIN_TOKENS and length > found.get(key, 0):
                    found[key] = length
        return found

    def drop_oldest(self) -> bool:
        """Give the least recently used region back; return False if there is none."""
        if not self._entries:
            return False
        self._drop(self._entries[0])
        return True

    def _matches(self, tokens: Sequence[int]) -> Iterator[tuple[int, _CachedPrefix]]:
        """Yield the entries that begin with enough of `tokens`, and how many those are."""
        encoded = _encoded(tokens[:-1])
        for entry in self._entries:
            length = _common_prefix(entry.tokens, encoded)
            if length >= _MIN_TOKENS:
                yield length, entry

    def _drop(self, entry: _CachedPrefix) -> None:
        self._entries = tuple(other for other in self._entries if other is not entry)
        entry.cache.close()


def _deep_enough(depths: bytes, wanted: bytes, exact: bool = False) -> int:
    """Return how many leading `depths` are at least those `wanted`, or equal to them."""
    length = min(len(depths), len(wanted))
    if depths[:length] == wanted[:length]:
        return length
    have = np.frombuffer(depths, np.uint8, length)
    want = np.frombuffer(wanted, np.uint8, length)
    wrong = have != want if exact else have < want
    return int(wrong.argmax()) if wrong.any() else length


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
