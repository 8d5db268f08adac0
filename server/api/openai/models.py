"""`GET /v1/models`: the model, and each variant under a name of its own, with the readers."""

import time

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.api.errors import ApiError
from server.api.reader_cards import reader_cards
from server.api.service import Service


def router(service: Service) -> APIRouter:
    """Return the routes of `GET /v1/models` and `GET /v1/models/NAME`."""
    routes = APIRouter()
    started = int(time.time())
    model = service.model

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

    def cards() -> dict[str, dict[str, object]]:
        pinned = {f"{model.name}@{name}": name for name in model.variants}
        names = {model.name: next(iter(model.variants)), **pinned}
        return {name: card(name, variant) for name, variant in names.items()}

    @routes.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": list(cards().values())})

    @routes.get("/v1/models/{name:path}")
    async def model_card(name: str) -> JSONResponse:
        card = cards().get(name)
        if card is None:
            raise ApiError(404, f"no model '{name}'; see /v1/models", "model", "model_not_found")
        return JSONResponse(card)

    return routes
