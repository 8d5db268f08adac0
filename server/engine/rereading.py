"""One finished answer read again, by its variant and by the base, a few tokens at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.decoder import Segment
from server.engine.kv_cache import SequenceCache
from server.engine.load import AnyDecoder

_PIECE = 8
"""Tokens of each of the two in one step: about what one step of live decoding takes."""


@dataclass(frozen=True, slots=True)
class Reread:
    """How far the variant was from the base over an answer's `tokens`, teacher-forced.

    `kl` and `worst` (of any one token) in nats, `agreement` the share of equal most likely tokens.
    """

    tokens: int
    kl: float
    worst: float
    agreement: float


class Rereading:
    """Holds two caches until it is done or closed."""

    def __init__(
        self,
        decoder: AnyDecoder,
        prompt: Sequence[int],
        output: Sequence[int],
        variant: VariantSpec,
        base: VariantSpec,
    ) -> None:
        self._decoder = decoder
        self._tokens = [*prompt, *output[:-1]]
        self._first = len(prompt) - 1  # whose successor is the first that was written
        self._variants = (base, variant)
        self._caches: list[SequenceCache] = []
        self._done = 0
        self._kl: list[Tensor] = []
        self._equal = 0

    def advance(self) -> bool:
        """Reads the next piece; False when there is no room for it or nothing left."""
        if not self._caches:
            self._caches = [self._decoder.cache.open() for _ in self._variants]
            if not all(cache.reserve(len(self._tokens)) for cache in self._caches):
                self.close()
                return False
        piece = self._tokens[self._done : self._done + _PIECE]
        if not piece:
            return False
        segments = [
            Segment(piece, cache, variant)
            for cache, variant in zip(self._caches, self._variants, strict=True)
        ]
        hidden = self._decoder.forward(segments)
        skipped = max(0, self._first - self._done)
        self._done += len(piece)
        if skipped < len(piece):
            self._compare(*(part[skipped:] for part in hidden.split(len(piece))))
        return True

    def _compare(self, base: Tensor, variant: Tensor) -> None:
        log_p = self._decoder.logits(base).float().log_softmax(-1)
        log_q = self._decoder.logits(variant).float().log_softmax(-1)
        self._kl.append((log_p.exp() * (log_p - log_q)).sum(-1).cpu())
        self._equal += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())

    def result(self) -> Reread | None:
        """What was found, once everything was read."""
        if self._done < len(self._tokens) or not self._kl:
            return None
        kl = torch.cat(self._kl)
        return Reread(len(kl), float(kl.mean()), float(kl.max()), self._equal / len(kl))

    @property
    def slots(self) -> int:
        """Of the cache, that it holds."""
        return sum(cache.size for cache in self._caches)

    def close(self) -> None:
        """Gives the caches back; what was read is forgotten."""
        for cache in self._caches:
            cache.close()
        self._caches = []
        self._done, self._kl, self._equal = 0, [], 0
