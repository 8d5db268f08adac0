"""Gives memory of the KV cache back to the host while the host is short of it."""

import logging
from collections.abc import Callable
from typing import Literal

from server.engine.cache.kv_cache import KVCache
from server.engine.cache.memory_allowance import MemoryAllowance

log = logging.getLogger(__name__)

GivenBack = Callable[[Literal["free", "prefixes"], int], None]
"""Called with what held memory that was given back, and its bytes."""


class MemoryRelief:
    """Gives back free slots, then those of stored prefixes, the least recently used first.

    What runs keeps all that it has. The engine's thread calls `check` between its steps; an error
    ends no request.
    """

    def __init__(
        self, cache: KVCache, allowance: MemoryAllowance, on_given_back: GivenBack
    ) -> None:
        self._cache = cache
        self._allowance = allowance
        self._on_given_back = on_given_back
        self._short = False

    def check(self) -> None:
        """Give back as much as the host lacks now, as far as there is something to give."""
        try:
            self._check()
        except Exception:
            log.exception("memory cannot be given back")

    def _check(self) -> None:
        shortage = self._allowance.shortage()
        if (shortage > 0) != self._short:
            self._short = shortage > 0
            log.warning("memory is short" if self._short else "memory is no longer short")
        if shortage <= 0 or not self._cache.gives_back:
            return
        free = self._give_back()
        dropped = prefixes = 0
        while free + prefixes < shortage and self._cache.prefixes.drop_oldest():
            dropped += 1
            prefixes += self._give_back()
        if free:
            self._on_given_back("free", free)
        if prefixes:
            self._on_given_back("prefixes", prefixes)
        if free + prefixes:
            log.warning(
                "gave %.0f MB of the KV cache back to the system; %d stored prefixes were dropped",
                (free + prefixes) / 1e6,
                dropped,
            )

    def _give_back(self) -> int:
        """Give the memory of all free slots back; return its bytes."""
        return self._cache.give_back(self._cache.arena.forget_free())
