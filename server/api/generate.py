"""`POST /generate`: a prompt in, a text out, and what the controller decided."""

from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.caller import caller_of
from server.api.errors import ApiError
from server.api.prompt.processor import PromptProcessor
from server.api.request_body import JsonRoute
from server.api.request_builder import ParsedRequest
from server.api.responses import GeneratedAnswer, collect, stream, usage
from server.api.schemas import GenerateBody
from server.api.service import (
    Service,
    encoding_options,
    estimated_tokens,
    variant_in_model_name,
)
from server.api.unsupported_parameters import refuse_unsupported
from server.engine.sequence import Delta

DEFAULT_MAX_TOKENS = 128


def router(service: Service, prompts: PromptProcessor) -> APIRouter:
    """Return the route of `POST /generate`."""
    routes = APIRouter(route_class=JsonRoute)

    @routes.post("/generate")
    async def generate(body: GenerateBody, request: Request) -> Response:
        if (body.n or 1) != 1:
            raise ApiError(400, "/generate gives one answer; use /v1/completions for more", "n")
        refuse_unsupported(body.model_extra or {}, 1)
        caller = caller_of(request, "gen")
        service.keep_place(caller, [estimated_tokens(body.prompt)])
        parsed = ParsedRequest(
            prompts=await prompts.texts([body.prompt], encoding_options(body, True)),
            body=body,
            max_tokens=body.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            variant=variant_in_model_name(service, body.model),
            constraint=await service.builder.constraints.compile(body.constraint()),
        )
        active = service.start(parsed, caller)

        def result(answer: GeneratedAnswer) -> dict[str, object]:
            return {
                "id": active.request_id,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "usage": usage(active, [answer]),
                "trimtab": active.disclosure(),
            }

        if not body.stream:
            (answer,) = await collect(service, active, request)
            return JSONResponse(result(answer), headers=active.headers())

        def chunks(_: int, delta: Delta, answer: GeneratedAnswer) -> Iterable[dict[str, object]]:
            if delta.finish_reason is not None:
                yield {**result(answer), "text": delta.text}
            elif delta.text:
                yield {"id": active.request_id, "text": delta.text}

        return await stream(service, active, request, chunks)

    return routes
