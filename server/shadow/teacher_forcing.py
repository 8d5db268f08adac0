"""The loss of variants on a given answer: all read it, and their distributions are compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.backends.base import Decoder, Segment
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.reading_depth import depth_changes, shallow_tokens

CHUNK_TOKENS = 8
"""Tokens that each model reads in one step: for two models about as long as a decode step."""


class ForcedModel(NamedTuple):
    """A variant, and how deep it reads each token of the prompt (see `ReadingDepths`)."""

    variant: VariantSpec
    depths: bytes = b""


@dataclass(frozen=True, slots=True)
class TeacherForcedLoss:
    """How far a variant is from the base over the `tokens` of an answer, each given the true ones.

    `kl` is the mean KL(base || variant) per token in nats and `max_kl` the largest of any token;
    `agreement` is the share of tokens whose most likely token is equal; `nll` is the variant's
    mean negative log-likelihood of the answer's tokens in nats.
    """

    tokens: int
    kl: float
    max_kl: float
    agreement: float
    nll: float


class TeacherForcing:
    """A check of one answer, done in steps by the base and some variants at once.

    Each model has a sequence in the KV cache until the check is closed.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt: Sequence[int],
        output: Sequence[int],
        base: VariantSpec,
        variants: Sequence[VariantSpec | ForcedModel],
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> None:
        """A `ForcedModel` among the `variants` reads the prompt as it says, others in full."""
        self._decoder = decoder
        self._tokens = [*prompt, *output[:-1]]
        self._first_scored = len(prompt) - 1  # it predicts the first token of the answer
        self._models = [
            one if isinstance(one, ForcedModel) else ForcedModel(one) for one in (base, *variants)
        ]
        # Where a prompt was read deeper by its prefix, another chunk begins.
        self._ends = [place for model in self._models for place in depth_changes(model.depths)]
        self._chunk_tokens = chunk_tokens
        self._caches: list[SequenceCache] = []
        self._done = 0
        self._output = torch.tensor(list(output))  # [output]
        # Of each chunk, [variants, scored tokens of the chunk]:
        self._kl: list[Tensor] = []
        self._agrees: list[Tensor] = []
        self._nll: list[Tensor] = []

    def advance(self) -> bool:
        """Read the next chunk. Return False if nothing is left or the cache has no room."""
        if not self._caches:
            self._caches = [self._decoder.cache.open() for _ in self._models]
            if not all(cache.reserve(len(self._tokens)) for cache in self._caches):
                self.close()
                return False
        ends = [self._done + self._chunk_tokens, *self._ends]
        chunk = self._tokens[self._done : min(end for end in ends if end > self._done)]
        if not chunk:
            return False
        unscored = max(0, self._first_scored - self._done)
        scored = max(0, len(chunk) - unscored)
        segments = []
        for cache, (variant, depths) in zip(self._caches, self._models, strict=True):
            part = depths[self._done : self._done + len(chunk)]
            shallow, depth = shallow_tokens(part, len(chunk))
            outputs = None if shallow is None else scored
            segments.append(Segment(chunk, cache, variant, outputs, shallow, depth))
        hidden = self._decoder.forward(segments)  # [models * chunk, hidden]
        self._done += len(chunk)
        if unscored < len(chunk):
            self._compare([part[unscored:] for part in hidden.split(len(chunk))])
        return True

    def _compare(self, hidden: list[Tensor]) -> None:
        """Score a chunk from each model's final hidden states, `[scored tokens, hidden]`."""
        base, *others = (  # log-probabilities, [scored tokens, vocabulary]
            self._decoder.logits(part).float().log_softmax(-1).cpu() for part in hidden
        )
        p, top = base.exp(), base.argmax(-1)
        first = sum(chunk.shape[1] for chunk in self._kl)
        written = self._output[first : first + len(base), None]  # [scored tokens, 1]
        self._kl.append(torch.stack([(p * (base - other)).sum(-1) for other in others]))
        self._agrees.append(torch.stack([other.argmax(-1) == top for other in others]))
        self._nll.append(torch.stack([-other.gather(-1, written)[:, 0] for other in others]))

    def losses(self) -> list[TeacherForcedLoss]:
        """Return the loss of each variant; nothing before all tokens are read.

        Raise `ArithmeticError` if a loss is not finite.
        """
        if self._done < len(self._tokens) or not self._kl:
            return []
        kl, agrees, nll = (  # [variants, output]
            torch.cat(chunks, dim=1) for chunks in (self._kl, self._agrees, self._nll)
        )
        if not bool(kl.isfinite().all() and nll.isfinite().all()):
            raise ArithmeticError("the teacher-forced loss of an answer is not finite")
        return [
            TeacherForcedLoss(
                tokens=kl.shape[1],
                kl=float(kl[variant].mean()),
                max_kl=float(kl[variant].max()),
                agreement=float(agrees[variant].float().mean()),
                nll=float(nll[variant].mean()),
            )
            for variant in range(len(kl))
        ]

    @property
    def slots(self) -> int:
        """The number of cache slots that it uses."""
        return sum(cache.size for cache in self._caches)

    def close(self) -> None:
        """Free the cache and forget what was read."""
        for cache in self._caches:
            cache.close()
        self._caches = []
        self._done, self._kl, self._agrees, self._nll = 0, [], [], []
