"""What is not generation: health, models, metrics."""

import time
from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry

from server.api.errors import ApiError
from server.api.readiness import Readiness
from server.api.service import Service
from telemetry import render


def public_router(service: Service, readiness: Readiness) -> APIRouter:
    """`GET /health`, open to all: 200 while the engine takes requests, else 503."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> JSONResponse:
        trouble = readiness.trouble()
        if trouble is not None:
            raise ApiError(503, trouble, retry_after=1)
        load = service.engine.load()
        return JSONResponse({"status": "ok", "running": load.running, "waiting": load.waiting})

    return routes


def router(service: Service, registry: CollectorRegistry, refresh: Callable[[], None]) -> APIRouter:
    """`GET /metrics` and `GET /v1/models`; `refresh` sets the gauges before they are read."""
    routes = APIRouter()
    started = int(time.time())

    def card(name: str, variant: str) -> dict[str, object]:
        model = service.model
        quality = model.artefact.table.quality.get(variant) if model.artefact is not None else None
        parameters = model.variants[variant].parameters(model.weights.shape)
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "trimtab",
            "root": model.name,
            "max_model_len": service.longest,
            "trimtab": {
                "variant": variant,
                "parameters": parameters,
                "kl": None if quality is None else quality.kl,
                "agreement": None if quality is None else quality.agreement,
            },
        }

    def cards() -> dict[str, dict[str, object]]:
        name = service.model.name
        pinned = {f"{name}@{v}": card(f"{name}@{v}", v) for v in service.model.variants}
        return {name: card(name, next(iter(service.model.variants))), **pinned}

    @routes.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": list(cards().values())})

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> JSONResponse:
        found = cards().get(name)
        if found is None:
            raise ApiError(404, f"no model '{name}'; see /v1/models", "model", "model_not_found")
        return JSONResponse(found)

    @routes.get("/metrics")
    async def metrics() -> Response:
        refresh()
        body, media_type = render(registry)
        return Response(body, media_type=media_type)

    return routes
