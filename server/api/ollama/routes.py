"""The routes of Ollama's API: `/api/chat`, `/api/generate`, `/api/embed` and what lists models."""

import time
from datetime import UTC, datetime
from importlib import metadata

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.chat.run import ChatRun
from server.api.chat.start import ChatParts, start_chat
from server.api.embedder import check_embedding, embed
from server.api.ollama.body import (
    AnswerBody,
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    OllamaGenerateBody,
    OllamaShowBody,
)
from server.api.ollama.model_cards import ModelCards
from server.api.ollama.raw_prompt import start_raw
from server.api.ollama.translation import chat_to_chat, generate_to_chat, model_of
from server.api.ollama.writer import NDJSON, OllamaWriter, PieceForm, as_message, as_response, head
from server.api.prompt.processor import EncodingOptions
from server.api.request_body import JsonRoute
from server.api.service import variant_in_model_name
from server.engine.pooling import Pooling


def router(parts: ChatParts) -> APIRouter:
    """Return the routes of answers and embeddings in Ollama's formats."""
    routes = APIRouter(route_class=JsonRoute)
    service = parts.service

    @routes.post("/api/chat")
    async def chat(body: OllamaChatBody, request: Request) -> Response:
        model = model_of(service, body.model)
        if not body.messages:
            return _loaded(parts, body, as_message)
        run = await start_chat(chat_to_chat(body, model), request, parts, "chat")
        return await _answer(run, body, as_message)

    @routes.post("/api/generate")
    async def generate(body: OllamaGenerateBody, request: Request) -> Response:
        model = model_of(service, body.model)
        if not body.prompt:
            return _loaded(parts, body, as_response)
        translated = generate_to_chat(body, model)
        start = start_raw if body.raw else start_chat
        run = await start(translated, request, parts, "gen")
        return await _answer(run, body, as_response)

    @routes.post("/api/embed")
    async def embeddings(body: OllamaEmbedBody, request: Request) -> JSONResponse:
        texts = [body.input] if isinstance(body.input, str) else body.input
        started = time.monotonic()
        vectors, tokens = await _embed(parts, body, texts, request)
        return JSONResponse(
            {
                "model": body.model,
                "embeddings": vectors,
                "total_duration": round(1e9 * (time.monotonic() - started)),
                "load_duration": 0,
                "prompt_eval_count": tokens,
            }
        )

    @routes.post("/api/embeddings")
    async def embedding(body: OllamaEmbeddingsBody, request: Request) -> JSONResponse:
        vectors, _ = await _embed(parts, body, [body.prompt], request)
        return JSONResponse({"embedding": vectors[0]})

    return routes


def model_router(parts: ChatParts) -> APIRouter:
    """Return the routes that tell of models and of the server in Ollama's formats."""
    routes = APIRouter()
    cards = ModelCards(parts, datetime.now(UTC))

    @routes.get("/api/version")
    async def version() -> JSONResponse:
        return JSONResponse({"version": metadata.version("trimtab")})

    @routes.get("/api/tags")
    async def tags() -> JSONResponse:
        return JSONResponse({"models": cards.listed()})

    @routes.get("/api/ps")
    async def running() -> JSONResponse:
        return JSONResponse({"models": cards.running()})

    shown = APIRouter(route_class=JsonRoute)

    @shown.post("/api/show")
    async def show(body: OllamaShowBody) -> JSONResponse:
        name = body.model or body.name
        return JSONResponse(cards.shown(None if name is None else model_of(parts.service, name)))

    routes.include_router(shown)
    return routes


async def _answer(run: ChatRun, body: AnswerBody, form: PieceForm) -> Response:
    """Return the answer: a stream, unless the body says otherwise."""
    writer = OllamaWriter(run, body.model, form)
    if body.stream is not False:
        return await run.stream(writer.texts(), NDJSON)
    (answer,) = await run.answers()
    return JSONResponse(writer.whole(answer), headers=run.active.headers())


def _loaded(parts: ChatParts, body: AnswerBody, form: PieceForm) -> JSONResponse:
    """Return the answer to a request without a prompt, which asks for the model to be loaded."""
    variant_in_model_name(parts.service, model_of(parts.service, body.model))
    reason = "unload" if body.keep_alive in (0, "0", "0s") else "load"
    ended = {"done": True, "done_reason": reason}
    return JSONResponse({**head(body.model), **form("", "", []), **ended})


async def _embed(
    parts: ChatParts,
    body: OllamaEmbedBody | OllamaEmbeddingsBody,
    texts: list[str],
    request: Request,
) -> tuple[list[list[float]], int]:
    """Return the vectors of texts and how many tokens those have. Raise `ApiError`."""
    dimensions = body.dimensions if isinstance(body, OllamaEmbedBody) else None
    check_embedding(parts.service, model_of(parts.service, body.model), dimensions, len(texts))
    prompts = await parts.prompts.texts(texts, EncodingOptions(special=True, plain=False))
    found = await embed(parts.service, prompts, Pooling.MEAN, request)
    return [vector.tolist() for vector in found.vectors], found.tokens
