"""A finished answer read again, by variants and by the base, some tokens at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.cache.kv_cache import SequenceCache
from server.engine.loading.load import AnyDecoder
from server.engine.segment import Segment

PIECE = 8
"""Tokens of each in one step: with two of them, about what one step of live decoding takes."""


@dataclass(frozen=True, slots=True)
class Reread:
    """How far a variant was from the base over an answer's `tokens`, teacher-forced.

    `kl` and `worst` (of any one token) in nats, `agreement` the share of equal most likely tokens;
    `surprise` is the variant's own loss on what was written, in nats per token.
    """

    tokens: int
    kl: float
    worst: float
    agreement: float
    surprise: float


class Rereading:
    """Holds a cache for each reader until it is done or closed."""

    def __init__(
        self,
        decoder: AnyDecoder,
        prompt: Sequence[int],
        output: Sequence[int],
        base: VariantSpec,
        variants: Sequence[VariantSpec],
        piece: int = PIECE,
    ) -> None:
        self._decoder = decoder
        self._tokens = [*prompt, *output[:-1]]
        self._first = len(prompt) - 1  # whose successor is the first that was written
        self._readers = (base, *variants)
        self._piece = piece
        self._caches: list[SequenceCache] = []
        self._done = 0
        self._output = torch.tensor(list(output))
        self._kl: list[Tensor] = []  # [variants, tokens] of each piece
        self._equal: list[Tensor] = []
        self._surprise: list[Tensor] = []

    def advance(self) -> bool:
        """Reads the next piece; False when there is no room for it or nothing left."""
        if not self._caches:
            self._caches = [self._decoder.cache.open() for _ in self._readers]
            if not all(cache.reserve(len(self._tokens)) for cache in self._caches):
                self.close()
                return False
        piece = self._tokens[self._done : self._done + self._piece]
        if not piece:
            return False
        segments = [
            Segment(piece, cache, reader)
            for cache, reader in zip(self._caches, self._readers, strict=True)
        ]
        hidden = self._decoder.forward(segments)
        skipped = max(0, self._first - self._done)
        self._done += len(piece)
        if skipped < len(piece):
            self._compare([part[skipped:] for part in hidden.split(len(piece))])
        return True

    def _compare(self, hidden: list[Tensor]) -> None:
        base, *others = (
            self._decoder.logits(part).float().log_softmax(-1).cpu() for part in hidden
        )
        p, top = base.exp(), base.argmax(-1)
        first = sum(piece.shape[1] for piece in self._kl)
        written = self._output[first : first + len(base), None]
        self._kl.append(torch.stack([(p * (base - other)).sum(-1) for other in others]))
        self._equal.append(torch.stack([other.argmax(-1) == top for other in others]))
        self._surprise.append(torch.stack([-other.gather(-1, written)[:, 0] for other in others]))

    def result(self) -> list[Reread]:
        """What was found of each variant, once everything was read; nothing before.

        Raises `ArithmeticError` if that is no finite number.
        """
        if self._done < len(self._tokens) or not self._kl:
            return []
        kl, equal, surprise = (
            torch.cat(parts, dim=1) for parts in (self._kl, self._equal, self._surprise)
        )
        if not bool(kl.isfinite().all() and surprise.isfinite().all()):
            raise ArithmeticError("an answer read again gave no finite number")
        return [
            Reread(
                kl.shape[1],
                float(mine.mean()),
                float(mine.max()),
                float(same.float().mean()),
                float(own.mean()),
            )
            for mine, same, own in zip(kl, equal, surprise, strict=True)
        ]

    @property
    def slots(self) -> int:
        """Of the cache, that it holds."""
        return sum(cache.size for cache in self._caches)

    def close(self) -> None:
        """Gives the caches back; what was read is forgotten."""
        for cache in self._caches:
            cache.close()
        self._caches = []
        self._done, self._kl, self._equal, self._surprise = 0, [], [], []
