"""`POST /v1/responses`, as the OpenAI API has it. Nothing is stored."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.chat.start import ChatParts, start_chat
from server.api.openai.chat_logprobs import logprob_entries
from server.api.openai.token_text import TokenText
from server.api.openai_responses.body import ResponseBody
from server.api.openai_responses.document import ResponseDocument, output_of
from server.api.openai_responses.event_writer import ResponseEvents
from server.api.openai_responses.translation import to_chat
from server.api.request_body import JsonRoute


def router(parts: ChatParts) -> APIRouter:
    """Return the route of `POST /v1/responses`."""
    routes = APIRouter(route_class=JsonRoute)
    tokens = TokenText(parts.service.model.tokenizer)

    @routes.post("/v1/responses")
    async def responses(body: ResponseBody, request: Request) -> Response:
        run = await start_chat(to_chat(body), request, parts, "resp")
        document = ResponseDocument(run, body)
        if body.stream:
            return await run.stream(ResponseEvents(run, document, tokens).texts())
        (answer,) = await run.answers()
        output = output_of(answer, logprob_entries(tokens, answer.logprobs))
        response = document.ended(output, answer.finish_reason)
        return JSONResponse(response, headers=run.active.headers())

    return routes
