"""`GET /v1/models`: the model, and each variant under a name of its own, with the readers."""

import time

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from pruners.variant import BASE
from server.api.reader_cards import reader_cards
from server.api.service import Service


def router(service: Service) -> APIRouter:
    """Return the routes of `GET /v1/models` and `GET /v1/models/NAME`."""
    routes = APIRouter()
    started = int(time.time())
    model, names = service.model, service.builder.names

    def card(name: str, variant: str) -> dict[str, object]:
        quality = model.artefact.table.quality.get(variant) if model.artefact is not None else None
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "trimtab",
            "root": model.name,
            "max_model_len": service.builder.context_tokens,
            "trimtab": {
                "variant": variant,
                "parameters": model.variants[variant].parameters(model.weights.shape),
                "kl": None if quality is None else quality.kl,
                "agreement": None if quality is None else quality.agreement,
                "readers": reader_cards(model),
            },
        }

    @routes.get("/v1/models")
    async def models() -> JSONResponse:
        pinned = {f"{names.served}@{variant}": variant for variant in model.variants}
        listed = {**dict.fromkeys((names.served, *names.listed), BASE), **pinned}
        cards = [card(name, variant) for name, variant in listed.items()]
        return JSONResponse({"object": "list", "data": cards})

    @routes.get("/v1/models/{name:path}")
    async def model_card(name: str) -> JSONResponse:
        return JSONResponse(card(name, names.variant_of(name, model.variants) or BASE))

    return routes
