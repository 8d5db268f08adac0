"""The HTTP application: its routes, and what happens when it starts and ends."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import APIRouter, FastAPI

from pruners.reading.reader import FULL
from pruners.variant import BASE
from server.api import adapters, errors, generate, monitoring, page, server_info
from server.api.access.control import AccessControl
from server.api.access.scopes import RouteScopes, Scope
from server.api.chat.start import ChatParts
from server.api.ingress import IngressMiddleware
from server.api.model_names import ModelNames
from server.api.narrowing import AnswerNarrowing
from server.api.openai import chat, completions, models
from server.api.openapi.document import router as openapi_router
from server.api.openapi.limits import ModelLimits
from server.api.prompt.chat_template import ChatTemplate
from server.api.readiness import Readiness
from server.api.request_builder import RequestBuilder
from server.api.route_aliases import RouteAliases
from server.api.service import Service
from server.api.tools.dialect import open_dialect
from server.assembly import ServerParts, assemble, stall_seconds
from server.engine.loading.load import LoadedModel
from server.prechecks import open_analyzer
from server.settings import Settings
from server.summary import summarize
from server.tracing import NO_TELEMETRY
from telemetry import Sampler


def create_app(model: LoadedModel, settings: Settings, sampler: Sampler | None = None) -> FastAPI:
    """Return the application that serves a loaded model.

    `app.state` has the `service`, the `readiness` and the `summary`, which the HTTP server needs.
    `sampler` replaces the readings of the machine, in tests. Raises the errors of `assemble`.
    """
    parts = assemble(model, settings, sampler)
    service = _service(model, settings, parts)
    step_times = parts.controller.step_time_model
    readiness = Readiness(
        parts.engine, lambda: stall_seconds(settings, step_times, model.variants[BASE])
    )
    dialect = open_dialect(parts.prompts.template, model.tokenizer, settings.tool_parser)
    chats = ChatParts(service, parts.prompts, dialect)
    tracing = parts.request_log.tracing
    app = FastAPI(
        title="Trimtab",
        lifespan=_lifespan(parts),
        openapi_url=None,  # has a route of its own
        docs_url=None,  # the pages would load code from elsewhere
        redoc_url=None,
        telemetry=NO_TELEMETRY if tracing is None else tracing.telemetry(),
    )
    access = AccessControl(settings, RouteScopes(app))
    app.state.service = service
    app.state.readiness = readiness
    app.state.summary = summarize(model, settings, parts)
    app.add_middleware(
        IngressMiddleware,
        max_body_bytes=settings.max_body_bytes,
        access=access,
        draining=lambda: readiness.draining,
    )
    app.add_middleware(RouteAliases)  # the outermost: all others see the usual names
    errors.install(app)
    for scope, routers in _routers(chats, parts, readiness, settings.public_metrics).items():
        for router in routers:
            app.include_router(router, tags=[scope])
    described = openapi_router(app, access.has_keys, _limits(service, parts))
    app.include_router(described, tags=[Scope.INFER])
    return app


def _routers(
    chats: ChatParts, parts: ServerParts, readiness: Readiness, public_metrics: bool
) -> dict[Scope, list[APIRouter]]:
    """Return all routes by the scope that a client's key needs for them."""
    service = chats.service
    metrics = monitoring.metrics_router(parts.monitoring.registry, parts.refresh_metrics)
    return {
        Scope.PUBLIC: [
            monitoring.health_router(parts.engine, readiness),
            page.public_router(),
            *([metrics] if public_metrics else []),
        ],
        Scope.METRICS: [] if public_metrics else [metrics],
        Scope.INFER: [
            models.router(service),
            server_info.router(service),
            generate.router(service, parts.prompts),
            completions.router(service, parts.prompts),
            chat.router(chats),
            *adapters.routers(chats),
            page.router(service, parts, readiness),
        ],
        Scope.ADMIN: [],
    }


def _limits(service: Service, parts: ServerParts) -> ModelLimits:
    """Return the bounds of bodies that depend on the model."""
    model, template = service.model, parts.prompts.template
    return ModelLimits(
        parts.context_tokens,
        model.weights.shape.vocab,
        service.builder.max_answers,
        tuple(model.variants),
        (FULL, *model.readers),
        tuple(template.variables) if isinstance(template, ChatTemplate) else (),
    )


def _service(model: LoadedModel, settings: Settings, parts: ServerParts) -> Service:
    fallbacks = parts.monitoring.metrics.analyzer_fallbacks
    service = Service(
        parts.engine,
        parts.controller,
        open_analyzer(settings, lambda name: fallbacks.labels(name).inc()),
        RequestBuilder(
            model,
            ModelNames.of(settings.served_model_name, settings.model, model.name),
            parts.context_tokens,
            settings.max_answers,
            settings.kv_scorer,
            settings.answer_seconds,
        ),
        parts.request_log,
        AnswerNarrowing(settings.narrow),
    )
    service.max_wait = settings.max_waiting_seconds
    return service


def _lifespan(parts: ServerParts) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return what starts the engine with the application, and closes everything at its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        parts.start()
        yield
        await parts.close()

    return lifespan
