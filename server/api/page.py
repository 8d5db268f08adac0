"""The live page at `/`, and the data that it shows."""

from collections.abc import Callable
from importlib import resources
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from server.api.page_files import PAGE_FILES
from server.api.reader_cards import reader_cards
from server.api.service import Service
from server.learning.supervisor import LearningStatus
from telemetry import Snapshot

_SECURITY_POLICY = "default-src 'self'; img-src data:; style-src 'self'; frame-ancestors 'none'"


def public_router() -> APIRouter:
    """Return the routes of the page's files, which are open to all without an API key."""
    routes = APIRouter()
    folder = resources.files("server") / "page"
    files = {name: (folder / name).read_bytes() for name in PAGE_FILES}

    def route(name: str) -> Callable[[], Any]:
        async def file() -> Response:
            headers = {"Content-Security-Policy": _SECURITY_POLICY, "Cache-Control": "no-cache"}
            return Response(files[name], media_type=PAGE_FILES[name], headers=headers)

        return file

    routes.add_api_route("/", route("index.html"), include_in_schema=False)
    for name in PAGE_FILES:
        routes.add_api_route(f"/{name}", route(name), include_in_schema=False)
    return routes


def router(
    service: Service, snapshot: Callable[[], Snapshot], learning: Callable[[], LearningStatus]
) -> APIRouter:
    """Return the route of `GET /trimtab/status`: host, queue, actions and the latest answers."""
    routes = APIRouter()

    @routes.get("/trimtab/status")
    async def status() -> JSONResponse:
        host, load = snapshot(), service.engine.status()
        return JSONResponse(
            {
                "model": service.model.name,
                "policy": service.controller.policy_info()["name"],
                "age_seconds": host.age(),
                "host": _readings(host),
                "gpus": [{"uuid": g.uuid, "name": g.name, **_readings(g)} for g in host.gpus],
                "load": {
                    "running": load.running,
                    "waiting": load.waiting,
                    "kv_ratio": load.kv_used / load.kv_capacity,
                },
                "variants": _variants(service),
                "readers": reader_cards(service.model),
                "learning": learning().to_json(),
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
