"""The one place where a request's numbers are checked against the model, before it is queued."""

from collections.abc import Collection

from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest

_SEEDS = range(-(2**63), 2**64)  # what a random generator takes
_HUGE = 1e30  # far beyond any use, and finite in fp32


class InvalidRequestError(ValueError):
    """What was asked for cannot be served. The message says why and is meant for the client."""


def check(request: GenerationRequest, vocabulary: int, context: int) -> None:
    """Raise `InvalidRequestError` unless every id is below `vocabulary` and all fits `context`."""
    if not request.prompt:
        raise InvalidRequestError("the prompt is empty")
    if request.max_tokens < 0 or request.min_tokens < 0:
        raise InvalidRequestError("max_tokens and min_tokens cannot be negative")
    if len(request.prompt) + request.max_tokens > context:
        raise InvalidRequestError(
            f"this model's maximum context length is {context} tokens; the prompt has "
            f"{len(request.prompt)} and {request.max_tokens} are to be written"
        )
    _check_ids("the prompt", request.prompt, vocabulary)
    _check_ids("stop_token_ids", request.stop.token_ids, vocabulary)
    _check_ids("the EOS ids", request.eos_token_ids, vocabulary)
    _check_ids("logit_bias", request.sampling.logit_bias, vocabulary)
    check_sampling(request.sampling)
    if request.prompt_logprobs is not None and request.reader is not None:
        raise InvalidRequestError("a prompt with log-probabilities is read in full, by no reader")
    if request.pooling is not None and (request.reader is not None or request.max_tokens):
        raise InvalidRequestError("a prompt that is embedded is read in full, and not answered")


def _check_ids(where: str, ids: Collection[int], vocabulary: int) -> None:
    for extreme in (min(ids), max(ids)) if ids else ():
        if not 0 <= extreme < vocabulary:
            raise InvalidRequestError(f"{where}: no token {extreme}, there are {vocabulary}")


def check_sampling(params: SamplingParams) -> None:
    """Raise `InvalidRequestError` unless every parameter is in its range.

    Comparisons with NaN are false.
    """
    fine = {
        "temperature": 0 <= params.temperature <= _HUGE,
        "top_p": 0 <= params.top_p <= 1,
        "top_k": params.top_k >= 0,
        "min_p": 0 <= params.min_p <= 1,
        "repetition_penalty": 0 < params.repetition_penalty <= _HUGE,
        "presence_penalty": abs(params.presence_penalty) <= _HUGE,
        "frequency_penalty": abs(params.frequency_penalty) <= _HUGE,
        "logit_bias": all(abs(bias) <= _HUGE for bias in params.logit_bias.values()),
        "seed": params.seed is None or params.seed in _SEEDS,
    }
    for name, holds in fine.items():
        if not holds:
            raise InvalidRequestError(f"{name}: {getattr(params, name)} is out of range")
