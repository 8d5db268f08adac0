"""From logits to tokens and log-probabilities, as one request asks for them."""

import math

import torch
from torch import Tensor

from server.engine.backends.base import Decoder
from server.engine.sampling import SamplingError
from server.engine.sequence import Sequence, TokenLogprob

_LOGIT_ROWS = 128  # prompt positions whose full-vocabulary logits exist at one time


def likeliest_or_sampled(
    sequence: Sequence, found: int | Tensor
) -> tuple[int, TokenLogprob | None]:
    """The next token: the likeliest one `found`, or one chosen by logits `[vocab]`.

    Raises `SamplingError` if there is no finite number to choose by.
    """
    if isinstance(found, int):
        if found < 0:
            raise SamplingError
        return found, None
    request, scores = sequence.request, found
    if len(sequence.output) < request.min_tokens and sequence.final:
        scores = scores.clone()
        scores[list(sequence.final)] = -torch.inf
    token = sequence.sampler(scores, list(request.prompt), sequence.output)
    if request.logprobs is None:
        return token, None
    return token, _logprobs(found[None], [token], request.logprobs)[0]


def prompt_scores(
    decoder: Decoder, sequence: Sequence, first: int, hidden: Tensor
) -> list[TokenLogprob]:
    """Log-probabilities of the prompt tokens behind those at `first` and on, `[rows, hidden]`.

    Raises `SamplingError` if one is not a finite number.
    """
    request = sequence.request
    targets = list(request.prompt[first + 1 : first + 1 + len(hidden)])
    found: list[TokenLogprob] = []
    for at in range(0, len(targets), _LOGIT_ROWS):
        part = targets[at : at + _LOGIT_ROWS]
        logits = decoder.logits(hidden[at : at + len(part)])
        found += _logprobs(logits, part, request.logprobs or 0)
    return found


def _logprobs(logits: Tensor, tokens: list[int], top: int) -> list[TokenLogprob]:
    """Each row's log-probability of its token and of the `top` most likely ones.

    All values come from one tensor, so that a client may compare them for equality.
    """
    scores = logits.log_softmax(-1)
    picked = scores.gather(1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0].tolist()
    if not all(map(math.isfinite, picked)):
        raise SamplingError
    values, ids = scores.topk(min(top, scores.shape[1]), dim=-1)
    found = []
    for token, logprob, row, names in zip(
        tokens, picked, values.tolist(), ids.tolist(), strict=True
    ):
        best = dict(zip(names, row, strict=True))
        likeliest = tuple({token: logprob, **best}.items())
        found.append(TokenLogprob(token, logprob, likeliest, top))
    return found
