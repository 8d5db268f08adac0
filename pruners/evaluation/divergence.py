"""How far the next-token distributions of variants are from the base's, in bounded memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

# One chunk's logits; small enough to stay near the cache, large enough for a fast product.
_CHUNK_BYTES = 32 * 2**20


@dataclass(slots=True)
class Tally:
    """Running sums over predicted tokens: `kl` and `nll` in nats, `equal` top-1 tokens."""

    tokens: int = 0
    kl: float = 0.0
    nll: float = 0.0
    equal: int = 0

    @property
    def mean_kl(self) -> float:
        """KL(base || variant), nats per token."""
        return self.kl / self.tokens

    @property
    def agreement(self) -> float:
        """Share of tokens whose most likely successor is the base's."""
        return self.equal / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll / self.tokens)


@torch.no_grad()
def compare(
    head: nn.Linear,
    base: torch.Tensor,
    variants: Sequence[torch.Tensor],
    targets: torch.Tensor,
    tallies: Sequence[Tally],
) -> None:
    """Adds these positions to the tallies, one a variant.

    `base` and each variant are final hidden states `[positions, hidden]` that `head` takes to
    logits, `targets` the true next tokens `[positions]`. Over the full vocabulary; the base's
    distribution is computed once for all variants, some positions at a time.
    """
    chunk = max(1, _CHUNK_BYTES // (4 * head.out_features))
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        log_p = _log_probabilities(head, base[part])
        p = log_p.exp()
        # Both terms of the KL go through the same operations: equal distributions give exactly 0.
        minus_entropy = (p * log_p).sum(-1)
        top = log_p.argmax(-1)
        for hidden, tally in zip(variants, tallies, strict=True):
            log_q = _log_probabilities(head, hidden[part])
            tally.tokens += len(log_q)
            tally.kl += float((minus_entropy - (p * log_q).sum(-1)).double().sum())
            tally.nll -= float(log_q.gather(1, targets[part, None]).double().sum())
            tally.equal += int((log_q.argmax(-1) == top).sum())


def _log_probabilities(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    return head(hidden).float().log_softmax(-1)
