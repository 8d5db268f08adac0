"""`GET /health` and `GET /metrics`."""

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from server.api.error_envelope import envelope
from server.api.readiness import Readiness, ServerState
from server.engine.engine import Engine
from telemetry import MetricsRegistry


def health_router(engine: Engine, readiness: Readiness) -> APIRouter:
    """Return the route of `GET /health`: 200 while the engine takes requests, else 503."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> JSONResponse:
        state, load = readiness.state, engine.status()
        body: dict[str, object] = {"status": state.value}
        body |= {"running": load.running, "waiting": load.waiting}
        if state is ServerState.READY:
            return JSONResponse(body)
        error = envelope(503, readiness.trouble() or state.value)
        return JSONResponse({**body, **error}, 503, {"Retry-After": "1"})

    return routes


def metrics_router(registry: MetricsRegistry, refresh: Callable[[], None]) -> APIRouter:
    """Return the route of `GET /metrics`; `refresh` sets the gauges before they are read."""
    routes = APIRouter()

    @routes.get("/metrics")
    async def metrics() -> Response:
        refresh()
        return Response(registry.text(), media_type=registry.content_type)

    return routes
