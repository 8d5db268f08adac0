"""`POST /v1/messages` and `/v1/messages/count_tokens`, as Anthropic's API has them."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.anthropic.body import CountTokensBody, MessagesBody
from server.api.anthropic.translation import to_chat
from server.api.anthropic.writer import MessageEvents, message
from server.api.chat.start import ChatParts, chat_prompt, start_chat
from server.api.request_body import JsonRoute
from server.api.service import variant_in_model_name


def router(parts: ChatParts) -> APIRouter:
    """Return the routes of Anthropic's Messages API."""
    routes = APIRouter(route_class=JsonRoute)

    @routes.post("/v1/messages")
    async def messages(body: MessagesBody, request: Request) -> Response:
        run = await start_chat(to_chat(body), request, parts, "msg")
        model = body.model or parts.service.served_name
        if body.stream:
            return await run.stream(MessageEvents(run, model).texts())
        (answer,) = await run.answers()
        return JSONResponse(message(run, answer, model), headers=run.active.headers())

    @routes.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountTokensBody) -> JSONResponse:
        variant_in_model_name(parts.service, body.model)
        prompt = await chat_prompt(parts, to_chat(body))
        return JSONResponse({"input_tokens": len(prompt.tokens)})

    return routes
