"""Routes that only tokenise: `/tokenize`, `/detokenize`, `/tokenizer_info`, `/apply-template`."""

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.api.chat.start import ChatParts, chat_prompt, rendered_chat
from server.api.chat.translated import chat_body
from server.api.errors import misfit
from server.api.openai.token_text import TokenText
from server.api.prompt.processor import EncodingOptions
from server.api.request_body import JsonRoute
from server.api.server_info import chat_template
from server.api.service import variant_in_model_name
from server.api.token_bodies import DetokenizeBody, TemplateBody, TokenizeBody

_OWN_FIELDS = set(TokenizeBody.model_fields) - {"model", "messages", "add_special_tokens"}


def router(parts: ChatParts) -> APIRouter:
    """Return the routes that tokenise."""
    routes = APIRouter(route_class=JsonRoute)
    service, texts = parts.service, TokenText(parts.service.model.tokenizer)

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> JSONResponse:
        variant_in_model_name(service, body.model)
        tokens = await _tokens(parts, body)
        response: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": service.builder.context_tokens,
            "tokens": tokens,
            "token_strs": [texts.shown(token) for token in tokens]
            if body.return_token_strs
            else None,
        }
        if body.with_pieces:
            response["tokens"] = [{"id": token, "piece": _piece(texts, token)} for token in tokens]
        return JSONResponse(response)

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> JSONResponse:
        variant_in_model_name(service, body.model)
        vocab = service.model.weights.shape.vocab
        if body.tokens and max(body.tokens) >= vocab:
            raise misfit(f"tokens: no token {max(body.tokens)} of {vocab}", "tokens")
        parts_of_text = await asyncio.to_thread(texts.prompt, body.tokens)
        text = b"".join(parts_of_text).decode(errors="replace")
        return JSONResponse({"prompt": text, "content": text})

    @routes.post("/apply-template")
    async def apply_template(body: TemplateBody) -> JSONResponse:
        return JSONResponse({"prompt": await rendered_chat(parts, chat_body(body.model_dump()))})

    return routes


def info_router(parts: ChatParts) -> APIRouter:
    """Return the route that describes the tokenizer."""
    routes = APIRouter()

    @routes.get("/tokenizer_info")
    async def tokenizer_info() -> JSONResponse:
        tokenizer = parts.service.model.tokenizer
        special = tokenizer.special_tokens_map
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        return JSONResponse(
            {
                "tokenizer_class": type(tokenizer).__name__,
                **{name: special.get(name) for name in names},
                "vocab_size": len(tokenizer),
                "model_max_length": parts.service.builder.context_tokens,
                "chat_template": chat_template(parts.service),
            }
        )

    return routes


async def _tokens(parts: ChatParts, body: TokenizeBody) -> list[int]:
    """Return the ids of what a body holds. Raise `ApiError`."""
    given = [name for name in ("prompt", "content", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise misfit("one of prompt, content and messages is needed", "prompt")
    if body.messages is not None:
        fields = body.model_dump(exclude=_OWN_FIELDS, exclude_none=True)
        return (await chat_prompt(parts, chat_body(fields))).tokens
    if body.content is not None:
        text, special = body.content, body.add_special
    else:
        text, special = body.prompt or "", body.add_special_tokens is not False
    options = EncodingOptions(special, plain=not body.parse_special)
    (prompt,) = await parts.prompts.texts([text], options)
    return prompt.tokens


def _piece(texts: TokenText, token: int) -> str | list[int]:
    """Return a token's text, or its bytes if those are a part of a character."""
    data = texts.data(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
