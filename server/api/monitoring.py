"""`GET /health` and `GET /metrics`."""

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from server.api.errors import ApiError
from server.api.readiness import Readiness
from server.engine.engine import Engine
from telemetry import MetricsRegistry


def health_router(engine: Engine, readiness: Readiness) -> APIRouter:
    """Return the route of `GET /health`: 200 while the engine takes requests, else 503."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> JSONResponse:
        trouble = readiness.trouble()
        if trouble is not None:
            raise ApiError(503, trouble, retry_after=1)
        load = engine.status()
        return JSONResponse({"status": "ok", "running": load.running, "waiting": load.waiting})

    return routes


def metrics_router(registry: MetricsRegistry, refresh: Callable[[], None]) -> APIRouter:
    """Return the route of `GET /metrics`; `refresh` sets the gauges before they are read."""
    routes = APIRouter()

    @routes.get("/metrics")
    async def metrics() -> Response:
        refresh()
        return Response(registry.text(), media_type=registry.content_type)

    return routes
