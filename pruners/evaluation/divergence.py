"""How far the next-token distributions of variants are from the base's, in bounded memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

# Bytes of one chunk's fp32 logits: near the CPU's cache, yet large enough for a fast product.
_CHUNK_BYTES = 32 * 2**20


@dataclass(slots=True)
class DivergenceTotals:
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
        """Share of positions where variant and base have the same most likely token."""
        return self.equal / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(mean negative log-likelihood) of the true next tokens."""
        return math.exp(self.nll / self.tokens)


@torch.no_grad()
def add_divergences(
    head: nn.Linear,
    base: torch.Tensor,
    variants: Sequence[torch.Tensor],
    targets: torch.Tensor,
    totals: Sequence[DivergenceTotals],
) -> None:
    """Add the divergence of each variant from the base to its totals.

    `base` and each of `variants` are final hidden states `[positions, hidden]`, which `head` takes
    to logits `[positions, vocab]`; `targets` are the true next tokens, int64 `[positions]`. The KL
    is over the full vocabulary, in fp32, summed in fp64. The base's distribution is computed once
    for all variants, some positions at a time.
    """
    chunk = max(1, _CHUNK_BYTES // (4 * head.out_features))
    for start in range(0, len(targets), chunk):
        part = slice(start, start + chunk)
        log_p = _log_probabilities(head, base[part])
        p = log_p.exp()
        # Both terms of the KL go through the same operations: equal distributions give exactly 0.
        negative_entropy = (p * log_p).sum(-1)
        top = log_p.argmax(-1)
        for hidden, total in zip(variants, totals, strict=True):
            log_q = _log_probabilities(head, hidden[part])
            total.tokens += len(log_q)
            total.kl += float((negative_entropy - (p * log_q).sum(-1)).double().sum())
            total.nll -= float(log_q.gather(1, targets[part, None]).double().sum())
            total.equal += int((log_q.argmax(-1) == top).sum())


def _log_probabilities(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    return head(hidden).float().log_softmax(-1)
