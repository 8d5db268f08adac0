"""`POST /generate`: a prompt in, a text out, and what the controller decided."""

from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.answers import Answer, collect, stream, usage
from server.api.errors import ApiError
from server.api.request_body import JsonRoute
from server.api.schemas import GenerateBody
from server.api.service import Ask, Service, call_id_of, encoding, variant_alias
from server.api.unsupported import refuse_unsupported
from server.engine.sequence import Delta

DEFAULT_MAX_TOKENS = 128


def router(service: Service) -> APIRouter:
    """The route, bound to a service."""
    routes = APIRouter(route_class=JsonRoute)

    @routes.post("/generate")
    async def generate(body: GenerateBody, request: Request) -> Response:
        if (body.n or 1) != 1:
            raise ApiError(400, "/generate gives one answer; use /v1/completions for more", "n")
        refuse_unsupported(body.model_extra or {}, 1)
        ask = Ask(
            await service.prompts.texts([body.prompt], encoding(body, special=True)),
            body,
            body.max_tokens,
            DEFAULT_MAX_TOKENS,
            variant_alias(service, body.model),
        )
        call = service.start(ask, call_id_of(request, "gen"))

        def full(answer: Answer) -> dict[str, object]:
            return {
                "id": call.call_id,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "usage": usage(call, [answer]),
                "trimtab": call.disclosure(),
            }

        if not body.stream:
            (answer,) = await collect(service, call, request)
            return JSONResponse(full(answer), headers=call.headers())

        def chunks(_: int, delta: Delta, answer: Answer) -> Iterable[dict[str, object]]:
            if delta.finish_reason is not None:
                yield {**full(answer), "text": delta.text}
            elif delta.text:
                yield {"id": call.call_id, "text": delta.text}

        return stream(service, call, chunks)

    return routes
