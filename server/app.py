"""Puts the server together: model, engine, telemetry, controller, routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from controller import Controller, StepRecord, StepTimeModel
from controller.audit import AuditLog
from policies import ExploringPolicy, Objectives, Policy
from policies.registry import named_policy
from pruners.artefact.table import Table
from pruners.variant import BASE, VariantSpec
from server.api import errors, generate, monitoring, page
from server.api.access_control import AccessControl
from server.api.ingress import IngressMiddleware
from server.api.narrowing import AnswerNarrowing
from server.api.openai import chat, completions, models
from server.api.prompt.chat_template import open_template
from server.api.prompt.encoder import PromptEncoder
from server.api.prompt.processor import PromptProcessor
from server.api.readiness import Readiness
from server.api.request_builder import RequestBuilder
from server.api.request_log import RequestLog
from server.api.service import Service
from server.catalogue import build_catalogue, open_sensitivity
from server.engine.backends.pytorch.linear import nbytes
from server.engine.engine import Engine
from server.engine.loading.load import LoadedModel
from server.engine.runner_factory import build_runner
from server.engine.warmup import measure_steps
from server.prechecks import open_analyzer
from server.settings import Settings
from server.shadow.monitor import ShadowMonitor
from telemetry import Sampler, ServerMetrics, Snapshot, TelemetryCollector, default_sampler

_JOIN_SECONDS = 1.0  # for the step in progress, at the end
_STALL_SECONDS, _STALL_STEPS = 5.0, 10  # a step that takes longer than both hangs


def create_app(model: LoadedModel, settings: Settings, sampler: Sampler | None = None) -> FastAPI:
    """The application around a loaded model. Raises `SettingsError`.

    `sampler` lets tests plant the host's readings.
    """
    sampler = sampler or default_sampler(period_seconds=settings.telemetry_seconds)
    sampler.start()

    def snapshot() -> Snapshot:
        latest = sampler.latest()
        assert latest is not None
        return latest

    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)
    registry.register(TelemetryCollector(sampler.latest))
    runner = build_runner(
        model, settings.to_engine_config(), snapshot().memory_available_bytes.value
    )
    latency = step_model(model)

    def on_step(record: StepRecord) -> None:
        metrics.step.observe(record.seconds)
        controller.observe_step(record)

    shadow = ShadowMonitor(runner.decoder, model.variants[BASE], settings.shadow_share)
    engine = Engine(
        runner,
        model.tokenizer,
        settings.max_waiting,
        settings.max_waiting_tokens,
        on_step,
        settings.threads,
        shadow,
        metrics.failed,
    )

    predictor = open_sensitivity(model, settings.artefact)
    controller = Controller(
        build_catalogue(model, settings.kv_budgets, predictor),
        latency,
        make_policy(model, settings),
        engine.load,
        snapshot,
        Objectives(
            _seconds(settings.ttft_ms),
            _seconds(settings.tpot_ms),
            settings.max_loss,
            _seconds(settings.deadline_ms),
            settings.refuse_late,
        ),
        sensitivity=predictor,
        save_energy=settings.save_energy,
        dwell=settings.dwell_seconds,
    )
    smallest = min(model.variants.values(), key=lambda v: v.parameters(model.weights.shape))
    latency.fit(measure_steps(runner, [model.variants[BASE], smallest]))
    longest = min(model.weights.context, runner.scheduler.cache.arena.capacity)
    audit = None
    if settings.audit_log is not None:
        audit = AuditLog(
            settings.audit_log, settings.audit_max_bytes, on_lost=metrics.audit_lines_lost.inc
        )
    request_log = RequestLog(metrics, controller, shadow, snapshot, audit, settings.audit_prompts)
    encoder = PromptEncoder(model.tokenizer, model.weights.shape.vocab, longest)
    prompts = PromptProcessor(encoder, open_template(model.tokenizer), longest)
    service = Service(
        engine,
        controller,
        open_analyzer(settings, lambda name: metrics.analyzer_fallbacks.labels(name).inc()),
        RequestBuilder(model, longest, settings.max_answers, settings.kv_scorer),
        request_log,
        AnswerNarrowing(model.variants, settings.narrow),
    )

    def refresh() -> None:
        now = engine.load()
        metrics.requests_running.set(now.running)
        metrics.requests_waiting.set(now.waiting)
        metrics.kv_cache_usage.set(now.kv_used / now.kv_capacity)

    describe(model, metrics)
    metrics.policy.info(controller.policy_info())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop(_JOIN_SECONDS)
        prompts.close()
        sampler.stop()
        await request_log.close()

    app = FastAPI(title="Trimtab", lifespan=lifespan)
    readiness = Readiness(engine, stall_seconds(settings, latency, model.variants[BASE]))
    app.state.service = service
    app.state.readiness = readiness
    app.add_middleware(
        IngressMiddleware,
        max_body_bytes=settings.max_body_bytes,
        access=AccessControl(settings.api_key, settings.host, settings.allowed_hosts),
        draining=lambda: readiness.draining,
    )
    errors.install(app)
    app.include_router(monitoring.health_router(engine, readiness))
    app.include_router(page.public_router())
    for routes in (
        monitoring.metrics_router(registry, refresh),
        models.router(service),
        generate.router(service, prompts),
        completions.router(service, prompts),
        chat.router(service, prompts),
        page.router(service, snapshot),
    ):
        app.include_router(routes)
    return app


def stall_seconds(settings: Settings, latency: StepTimeModel, base: VariantSpec) -> float:
    """Return how long a step may take before the engine counts as hanging.

    A large model on a slow host takes long for a full step, and longer while other processes run.
    """
    if settings.stall_seconds is not None:
        return settings.stall_seconds
    full = latency.seconds([(base, settings.step_tokens, 0)], 1)
    return max(_STALL_SECONDS, _STALL_STEPS * full)


def step_model(model: LoadedModel) -> StepTimeModel:
    """How long steps take, to be fitted; it knows what each variant reads."""
    table = Table() if model.artefact is None else model.artefact.table
    return StepTimeModel(
        model.weights.shape, {name: cost.correction_parameters for name, cost in table.cost.items()}
    )


def make_policy(model: LoadedModel, settings: Settings) -> Policy:
    """The policy of the settings. Raises `SettingsError` or `PolicyError`."""
    names = list(model.variants)
    policy = named_policy(settings.policy, names, model.fingerprint, settings.force)
    return ExploringPolicy(policy, settings.explore) if settings.explore else policy


def describe(model: LoadedModel, metrics: ServerMetrics) -> None:
    """Sets the metrics that never change."""
    shape = model.weights.shape
    base = sum(nbytes(tensor) for tensor in model.weights.tensors())
    owns = [own for parts in model.own.values() for own in parts.values()]
    added = sum(nbytes(tensor) for own in owns for tensor in own.tensors())
    metrics.weights_resident.labels("base").set(base)
    metrics.weights_resident.labels("variants").set(added)
    full = model.variants[BASE].parameters(shape)
    for name, variant in model.variants.items():
        share = variant.parameters(shape) / full
        metrics.variant.labels(name).info({"model": model.name, "bytes_ratio": f"{share:.4f}"})
        if name != BASE:
            metrics.variant_trusted.labels(name).set(1)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
