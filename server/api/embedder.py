"""Embeddings: prompts that the base reads and that nothing answers, a few at a time."""

from dataclasses import dataclass

from starlette.requests import Request
from torch import Tensor

from pruners.reading.reader import FULL
from pruners.variant import BASE
from server.api.active_request import ActiveRequest
from server.api.caller import caller_of
from server.api.errors import misfit
from server.api.prompt.processor import TokenizedPrompt
from server.api.request_builder import ParsedRequest
from server.api.responses import FAILURES, failure_of, until_disconnected
from server.api.schemas import SamplingBody, TrimtabHints
from server.api.service import Service, variant_in_model_name
from server.engine.pooling import Pooling

_MAX_INPUTS = 2048  # in one call, as the OpenAI API has it
_PORTION = 8  # prompts that wait or are read at once, so that others get their turn
_BY_THE_BASE = TrimtabHints(variant=BASE, read=FULL)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each prompt, fp32 `[hidden]` of length 1, and the request that made the last.

    `tokens` is how many all prompts have.
    """

    vectors: list[Tensor]
    tokens: int
    active: ActiveRequest


def check_embedding(
    service: Service, model: str | None, dimensions: int | None, inputs: int
) -> None:
    """Raise `ApiError` for a variant, which does not embed, shorter vectors, or too many inputs."""
    if variant_in_model_name(service, model) not in (None, BASE):
        raise misfit("embeddings are those of the base; leave the variant out", "model")
    hidden = service.model.weights.shape.hidden
    if dimensions not in (None, hidden):
        message = f"this model's embeddings have {hidden} dimensions and cannot be shortened"
        raise misfit(message, "dimensions")
    if not 0 < inputs <= _MAX_INPUTS:
        reason = f"at most {_MAX_INPUTS} inputs in one call" if inputs else "input is empty"
        raise misfit(reason, "input")


async def embed(
    service: Service, prompts: list[TokenizedPrompt], pooling: Pooling, request: Request
) -> Embeddings:
    """Embed prompts, at least one. Raise `ApiError`, also if the client disconnects.

    The prompts go through the queue like any others, in portions. All are read by the base.
    """
    size = min(_PORTION, service.builder.max_answers)
    caller = caller_of(request, "embd")
    vectors: list[Tensor] = []
    for first in range(0, len(prompts), size):
        parsed = ParsedRequest(
            prompts=prompts[first : first + size],
            body=SamplingBody(trimtab=_BY_THE_BASE),
            max_tokens=0,
            pooling=pooling,
        )
        active = service.start(parsed, caller)
        vectors += await until_disconnected(_read(service, active), service, active, request)
    return Embeddings(vectors, sum(len(prompt.tokens) for prompt in prompts), active)


async def _read(service: Service, active: ActiveRequest) -> list[Tensor]:
    """Return the vector of each prompt. Raise `ApiError` if one fails."""
    vectors: dict[int, Tensor] = {}
    async for index, delta in service.deltas(active):
        if delta.finish_reason in FAILURES:
            raise failure_of(service, delta)
        if delta.embedding is not None:
            vectors[index] = delta.embedding
    return [vectors[index] for index in range(len(active.generations))]
