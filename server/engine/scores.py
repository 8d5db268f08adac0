"""Chooses tokens from scores, and computes log-probabilities, as a request asks for them."""

import math

import torch
from torch import Tensor

from server.engine.backends.base import Decoder
from server.engine.draw import allowed_only
from server.engine.sampling import SamplingError
from server.engine.sequence import Sequence, TokenLogprob

_LOGIT_ROWS = 128  # prompt positions whose logits are in memory at a time


def choose_token(
    sequence: Sequence, score: int | Tensor, allowed: Tensor | None = None
) -> tuple[int, TokenLogprob | None]:
    """Return the next token, and its log-probability if the request asks for it.

    `score` is the token already, or fp32 logits `[vocab]` to sample from, of which the bits
    `allowed` (int32) leave some. The log-probability is that among all tokens. Raises
    `SamplingError` if the highest logit is not a finite number.
    """
    if isinstance(score, int):
        if score < 0:
            raise SamplingError
        return score, None
    request, logits = sequence.request, score
    if allowed is not None:
        logits = allowed_only(logits, allowed)
    if len(sequence.output) < request.min_tokens and sequence.end_token_ids:
        longer = logits.clone()
        longer[list(sequence.end_token_ids)] = -torch.inf
        # A text that a constraint leaves no way to go on ends, however short it is.
        if allowed is None or longer.max() > -torch.inf:
            logits = longer
    token = sequence.sampler(logits, list(request.prompt), sequence.output)
    if request.logprobs is None:
        return token, None
    return token, _logprobs(score[None], [token], request.logprobs)[0]


def score_prompt(
    decoder: Decoder, sequence: Sequence, first: int, hidden: Tensor
) -> list[TokenLogprob]:
    """Return the log-probabilities of prompt tokens, given those before them.

    `hidden` is `[rows, hidden]`, of the tokens at `first` and on; each scores its successor. Raises
    `SamplingError` if one is not a finite number.
    """
    request = sequence.request
    targets = list(request.prompt[first + 1 : first + 1 + len(hidden)])
    logprobs: list[TokenLogprob] = []
    for at in range(0, len(targets), _LOGIT_ROWS):
        part = targets[at : at + _LOGIT_ROWS]
        logits = decoder.logits(hidden[at : at + len(part)])
        logprobs += _logprobs(logits, part, request.prompt_logprobs or 0)
    return logprobs


def _logprobs(logits: Tensor, tokens: list[int], top: int) -> list[TokenLogprob]:
    """Return each row's log-probability of its token and of the `top` most likely ones.

    `logits` are fp32 `[rows, vocab]`, `tokens` one for each row. All values come from one tensor,
    so that a client may compare them for equality.
    """
    scores = logits.log_softmax(-1)
    chosen = torch.tensor(tokens, device=scores.device)[:, None]
    picked = scores.gather(1, chosen)[:, 0].tolist()
    if not all(map(math.isfinite, picked)):
        raise SamplingError
    ranks = (1 + (scores > scores.gather(1, chosen)).sum(-1)).tolist()
    values, ids = scores.topk(min(top, scores.shape[1]), dim=-1)
    logprobs = []
    for token, logprob, rank, row, names in zip(
        tokens, picked, ranks, values.tolist(), ids.tolist(), strict=True
    ):
        best = dict(zip(names, row, strict=True))
        likeliest = tuple({token: logprob, **best}.items())
        logprobs.append(TokenLogprob(token, logprob, likeliest, top, rank))
    return logprobs
