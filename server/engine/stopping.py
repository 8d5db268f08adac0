"""Appends tokens to answers and decides when an answer ends."""

import time

from server.engine.sequence import Delta, FinishReason, Sequence, TokenLogprob


def append_token(sequence: Sequence, token: int, logprob: TokenLogprob | None) -> Delta:
    """Append a token to an answer and return what it adds.

    The delta has a finish reason if the token is an end token, completes a stop string or what a
    constraint asks for, or is the last that the request allows. Raises `ConstraintError`.
    """
    now = time.monotonic()
    request, detokenizer = sequence.request, sequence.detokenizer
    prompt_logprobs = None
    if not sequence.output:
        sequence.first_token_at = now
        if request.prompt_logprobs is not None:
            prompt_logprobs = tuple(sequence.prompt_logprobs)
    sequence.last_token_at = now
    constraint = request.constraint
    if constraint is not None:
        constraint.accept(token)
    sequence.write(token)
    # Under a constraint no end token is written before the text may end.
    long_enough = len(sequence.output) >= request.min_tokens or constraint is not None
    ended = long_enough and token in sequence.end_token_ids
    text = "" if ended and not request.stop.include_in_output else detokenizer.push(token)
    reason: FinishReason | None = None
    stop_reason: str | int | None = None
    if ended:
        reason = FinishReason.STOP
        stop_reason = token if token in request.stop.token_ids else None
    elif detokenizer.stopped_by is not None:
        reason, stop_reason = FinishReason.STOP, detokenizer.stopped_by
    elif constraint is not None and constraint.ended:
        reason = FinishReason.STOP
    elif len(sequence.output) >= request.max_tokens:
        reason = FinishReason.LENGTH
    if reason is not None:
        text += detokenizer.finish()
        if reason is not FinishReason.STOP and detokenizer.stopped_by is not None:
            reason, stop_reason = FinishReason.STOP, detokenizer.stopped_by
    return Delta(text, token, logprob, prompt_logprobs, reason, stop_reason)
