"""What other servers tell of themselves: `GET /version`, `/load` and `/props`."""

from importlib import metadata

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.api.service import Service


def router(service: Service) -> APIRouter:
    """Return the routes of `GET /version`, `/load` (as in vLLM) and `/props` (as in llama.cpp)."""
    routes = APIRouter()

    @routes.get("/version")
    async def version() -> JSONResponse:
        return JSONResponse({"version": metadata.version("trimtab")})

    @routes.get("/load")
    async def load() -> JSONResponse:
        status = service.engine.status()
        return JSONResponse({"server_load": status.running + status.waiting})

    @routes.get("/props")
    async def props() -> JSONResponse:
        model, special = service.model, service.model.tokenizer.special_tokens_map
        return JSONResponse(
            {
                "default_generation_settings": {
                    "n_ctx": service.builder.context_tokens,
                    "params": model.sampling_defaults,
                },
                "total_slots": service.engine.status().max_running,
                "model_alias": service.served_name,
                "model_path": model.name,
                "modalities": {"vision": False, "audio": False},
                "chat_template": chat_template(service),
                "bos_token": special.get("bos_token"),
                "eos_token": special.get("eos_token"),
                "build_info": f"trimtab {metadata.version('trimtab')}",
            }
        )

    return routes


def chat_template(service: Service) -> str | None:
    """Return the source of the model's chat template, None where there is none."""
    try:
        return str(service.model.tokenizer.get_chat_template())
    except ValueError:
        return None
