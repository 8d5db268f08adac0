"""The page at `/`, and the data that it shows."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from server.api.page_files import PAGE_HEADERS, PUBLIC_PATHS, page_file
from server.api.reader_cards import reader_cards
from server.api.readiness import Readiness
from server.api.service import Service
from server.api.status_history import FIELDS
from server.assembly import ServerParts


def public_router() -> APIRouter:
    """Return the routes of the page's files, which are open to all without an API key."""
    routes = APIRouter()

    def route(path: str) -> Callable[[], Any]:
        async def file() -> Response:
            found = page_file(path)
            assert found is not None
            return Response(found.body, media_type=found.media_type, headers=PAGE_HEADERS)

        return file

    for path in PUBLIC_PATHS:
        routes.add_api_route(path, route(path), include_in_schema=False)
    return routes


def router(service: Service, parts: ServerParts, readiness: Readiness) -> APIRouter:
    """Return the routes of the page's data.

    `GET /trimtab/status` has host, queue, actions and the latest answers; `GET /trimtab/history`
    the last two minutes.
    """
    routes = APIRouter()

    @routes.get("/trimtab/history")
    async def two_minutes() -> JSONResponse:
        return JSONResponse(parts.history.to_json())

    @routes.get("/trimtab/status")
    async def status() -> JSONResponse:
        host, load = parts.monitoring.snapshot(), service.engine.status()
        return JSONResponse(
            {
                "model": service.served_name,
                "policy": service.controller.policy_info()["name"],
                "trouble": readiness.trouble(),
                "draining": readiness.draining,
                "sample": dict(zip(FIELDS, parts.history.sample(), strict=True)),
                "age_seconds": host.age(),
                "host": _readings(host),
                "gpus": [{"uuid": g.uuid, "name": g.name, **_readings(g)} for g in host.gpus],
                "load": {
                    "running": load.running,
                    "waiting": load.waiting,
                    "kv_ratio": load.kv_used / load.kv_capacity,
                },
                "layers": service.model.weights.shape.layers,
                "variants": _variants(service),
                "readers": reader_cards(service.model),
                "learning": parts.learning.status().to_json(),
                "recent": list(service.request_log.recent),
            }
        )

    return routes


def _readings(holder: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        name: {"value": reading.value, "source": reading.source, "reason": reading.reason}
        for name, reading in holder.readings()
    }


def _variants(service: Service) -> list[dict[str, Any]]:
    """Return the variants, the base first; `kl` is None where it was not measured."""
    catalogue, guard = service.controller.catalogue, service.controller.quality_guard
    shape = service.model.weights.shape
    specs = catalogue.variants
    full = next(iter(specs.values())).parameters(shape)
    return [
        {
            "name": name,
            "bytes": spec.parameters(shape) / full,
            "kl": 0.0 if not index else catalogue.variant_loss.get(name),
            "trusted": guard.is_trusted(name),
        }
        for index, (name, spec) in enumerate(specs.items())
    ]
