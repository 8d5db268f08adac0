"""`POST /v1/embeddings`, as the OpenAI API has it."""

import asyncio
import base64
from typing import Annotated, Literal, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field
from pydantic_core import to_json
from torch import Tensor

from server.api.embedder import Embeddings, check_embedding, embed
from server.api.prompt.processor import EncodingOptions, PromptProcessor
from server.api.request_body import JsonRoute
from server.api.schemas import AnyPrompt, Count, Name
from server.api.service import Service
from server.api.strict_body import RequestBody
from server.api.unsupported_parameters import refuse_unsupported
from server.engine.pooling import Pooling


class EmbeddingBody(RequestBody):
    """The body of `POST /v1/embeddings`; `pooling` is an addition."""

    model_config = ConfigDict(extra="allow")

    model: Name | None = None
    input: AnyPrompt
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[Count, Field(ge=1)] | None = None
    pooling: Annotated[Pooling, Field(strict=False)] = Pooling.MEAN


def router(service: Service, prompts: PromptProcessor) -> APIRouter:
    """Return the route of `POST /v1/embeddings`."""
    routes = APIRouter(route_class=JsonRoute)

    @routes.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody, request: Request) -> Response:
        refuse_unsupported(body.model_extra or {}, 1)
        entries = [body.input] if isinstance(body.input, str) else body.input
        if entries and isinstance(entries[0], int):
            entries = [entries]
        check_embedding(service, body.model, body.dimensions, len(entries))
        if isinstance(entries[0], str):
            options = EncodingOptions(special=True, plain=False)
            tokenized = await prompts.texts(entries, options)
        else:
            tokenized = await prompts.ids(cast(list[list[int]], entries))
        found = await embed(service, tokenized, body.pooling, request)

        def serialise() -> bytes:
            return to_json(_response(service.served_name, body.encoding_format, found))

        content = await asyncio.to_thread(serialise)  # which takes long for many vectors
        return Response(content, media_type="application/json", headers=found.active.headers())

    return routes


def _response(model: str, encoding: str, found: Embeddings) -> dict[str, object]:
    write = _base64 if encoding == "base64" else Tensor.tolist
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(found.vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
    }


def _base64(vector: Tensor) -> str:
    """Return a vector as little-endian fp32 in base64."""
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
