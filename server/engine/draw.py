"""How one token is drawn from logits, as a function of the request's seed and of the logits alone.

A draw is an arg max: each token that the filters leave has the score

    logit + temperature * noise(key, token)

and the highest one is taken. With independent Gumbel noise this is a sample of the softmax of
`logits / temperature` (the Gumbel-max trick, as in Maddison et al., 2014, "A* Sampling", NeurIPS).
The noise of a token does not depend on other tokens, so a backend may find the same token without
computing all logits.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_FIRST_CANDIDATES = 1024  # that are sorted before the whole vocabulary is
_MASK32, _MASK64 = 2**32 - 1, 2**64 - 1
_HIGHEST = 1 - 2.0**-24  # of fp32 below 1


class Draw(NamedTuple):
    """How one token is drawn. `key` has 64 bits; draws with different keys are independent.

    With `temperature` 0 the likeliest token is taken. `top_k` 0, `top_p` 1 and `min_p` 0 switch
    these filters off. `allowed` is a token mask, int32 `[words]` on the CPU (see `allowed_only`),
    which leaves some tokens before all else; None: all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    key: int = 0
    allowed: Tensor | None = None

    @property
    def is_filtered(self) -> bool:
        """Return whether not all tokens may be drawn."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


def choose(logits: Tensor, draw: Draw) -> int:
    """Return the token that a draw takes, by fp32 `logits` `[vocab]`.

    It is -1 if the highest logit is not a finite number. Of equal scores the first token wins.
    """
    if draw.allowed is not None:
        logits = allowed_only(logits, draw.allowed)
    highest, token = logits.max(0)
    if not math.isfinite(highest):
        return -1
    if draw.temperature == 0.0:
        return int(token)
    # The maximum is subtracted first, so that a small temperature does not overflow.
    tokens = _kept((logits - highest) / draw.temperature, draw)
    scores = logits[tokens] + draw.temperature * noise(draw.key, tokens)
    return int(tokens[scores.argmax()])


def allowed_only(logits: Tensor, allowed: Tensor) -> Tensor:
    """Return fp32 `logits` `[vocab]` with -inf for all tokens but those whose bits are set.

    Bit `token % 32` of the int32 word `token // 32` of `allowed`, on the CPU, is that of a token.
    """
    bits = np.unpackbits(allowed.numpy().view(np.uint8), bitorder="little")[: len(logits)]
    kept = torch.from_numpy(bits.view(np.bool_)).to(logits.device)
    return logits.masked_fill(~kept, -torch.inf)


def key_of(seed: int, position: int) -> int:
    """Return the key of a request's draw at a position of its answer (SplitMix64)."""
    x = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK64
    return x ^ x >> 31


def noise(key: int, tokens: Tensor) -> Tensor:
    """Return standard Gumbel noise, fp32, of int64 `tokens` `[count]`.

    The native kernels compute the same: the constants are those of `lowbias32` (Wellons, 2018,
    "Prospecting for Hash Functions").
    """
    hashed = _mixed(_mixed(tokens ^ (key & _MASK32)) ^ (key >> 32))
    share = ((hashed.float() + 0.5) * 2.0**-32).clamp_max(_HIGHEST)
    return -(-torch.log1p(-share)).log()


def _mixed(x: Tensor) -> Tensor:
    """Mix the bits of numbers of 32 bits, int64 of any shape."""
    x = x ^ x >> 16
    x = x * 0x7FEB352D & _MASK32
    x = x ^ x >> 15
    x = x * 0x846CA68B & _MASK32
    return x ^ x >> 16


def _kept(scaled: Tensor, draw: Draw) -> Tensor:
    """Return the tokens `[kept]` that top-k, top-p and min-p leave.

    `scaled` is fp32 `[vocab]`: logits over the temperature, the highest 0.
    """
    vocab = scaled.shape[0]
    limit = min(draw.top_k or vocab, vocab)
    if limit == vocab and draw.top_p >= 1.0 and draw.min_p == 0.0:
        return torch.arange(vocab, device=scaled.device)
    first = min(limit, _FIRST_CANDIDATES) if draw.top_p < 1.0 or draw.min_p else limit
    values, tokens = scaled.topk(first)
    keep = _kept_count(values, scaled, limit, draw)
    if keep == first < limit:  # candidates beyond the first ones may be left, too
        values, tokens = scaled.topk(limit)
        keep = _kept_count(values, scaled, limit, draw)
    return tokens[:keep]


def _kept_count(values: Tensor, scaled: Tensor, limit: int, draw: Draw) -> int:
    """Return how many of the descending `values` `[first candidates]` are left."""
    # Probabilities are normalised over the top k, as in transformers and vLLM.
    total = (values if limit < scaled.shape[0] and limit == len(values) else scaled).logsumexp(0)
    probabilities = (values - total).exp()
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if draw.top_p < 1.0:
        keep &= probabilities.cumsum(0) - probabilities < draw.top_p
    if draw.min_p > 0.0:
        keep &= probabilities >= draw.min_p * probabilities[0]
    return max(1, int(keep.sum()))
