"""Puts the server together: model, engine, telemetry, controller, routes."""

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from controller import Catalogue, Controller, StepRecord, StepTimeModel
from controller.audit import AuditLog
from controller.sensitivity import Sensitivity, load_sensitivity
from policies import ExploringPolicy, Objectives, Policy
from policies.registry import named_policy
from pruners.artefact.folder import ArtefactError, load_artefact
from pruners.artefact.table import Table
from pruners.variant import BASE, VariantSpec
from server.api import errors, generate, page, system
from server.api.accounting import Accounts
from server.api.door import Door
from server.api.limits import Limits
from server.api.narrowing import Narrowing
from server.api.openai import chat, completions
from server.api.prompt.chat_template import open_template
from server.api.prompt.encoder import PromptEncoder
from server.api.prompt.reader import PromptReader
from server.api.readiness import Readiness
from server.api.service import Service
from server.engine.backends.native.packed_weights import PackedWeights
from server.engine.backends.pytorch.linear import nbytes
from server.engine.engine import Engine
from server.engine.loading.load import CPU, LoadedModel, load_model, open_decoder, preferred_device
from server.engine.loading.source import model_name, resolve_model
from server.engine.runner import Runner
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.speculation.drafting import drafter
from server.engine.warmup import measure_steps
from server.prechecks import open_analyzer, shipped_artefact
from server.settings import Settings, SettingsError
from server.shadow.monitor import Answered, Shadow
from server.shadow.teacher_forcing import Reread
from telemetry import Sampler, ServerMetrics, Snapshot, TelemetryCollector, default_sampler

log = logging.getLogger(__name__)

_KV_SHARE = 0.25  # of the memory that is free at start, for the cache, unless it is set
_JOIN_SECONDS = 1.0  # for the step in progress, at the end
_LEAST_KV = 1024  # tokens, however little memory there is
_STALL_SECONDS, _STALL_STEPS = 5.0, 10  # a step that takes longer than both hangs


def load(settings: Settings) -> LoadedModel:
    """Loads the model and its artefact as the settings say."""
    name = model_name(settings.model)
    given = settings.artefact or shipped_artefact(name)
    artefact = None if given is None else load_artefact(given)
    device = _device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    folder = resolve_model(settings.model)  # last: it may fetch or convert
    try:
        model = load_model(folder, name, settings.weights, artefact, settings.context, device)
    except ArtefactError:
        if settings.artefact is not None:
            raise
        # Another model that happens to be called like the shipped one's.
        model = load_model(folder, name, settings.weights, None, settings.context, device)
    if model.artefact is None:
        log.warning("no artefact for %s: serving the base only; see `trimtab build`", name)
    return model


def _device(name: str) -> torch.device:
    """Raises `SettingsError` if there is no such device."""
    if name == "cpu":
        return CPU
    if name == "cuda" and preferred_device() == CPU:
        raise SettingsError("device cuda: PyTorch sees no GPU here; serve with --device cpu")
    return preferred_device()


def build_runner(model: LoadedModel, settings: Settings, free_bytes: float | None) -> Runner:
    """The engine's inside: cache, scheduler and decoder.

    Unless it is set, the cache takes at most a quarter of `free_bytes`, or of a GPU's free memory
    where the weights are there. Raises `SettingsError` if there is no memory for it.
    """
    weights = model.weights
    shape = weights.shape
    dtype = torch.int8 if settings.kv_cache == "int8" else weights.dtype
    if dtype == torch.int8 and not isinstance(weights, PackedWeights):
        raise SettingsError(f"kv_cache int8 needs int4 or int8 weights, not {weights.precision}")
    per_token = 2 * shape.layers * shape.kv_groups * shape.head_dim * dtype.itemsize
    wanted = settings.max_running * weights.context
    if weights.device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(weights.device)
    if free_bytes is not None:
        wanted = min(wanted, max(int(free_bytes * _KV_SHARE) // per_token, _LEAST_KV))
    capacity = settings.kv_tokens or wanted
    room = math.inf if free_bytes is None else free_bytes
    size = f"a cache of {capacity:,} tokens takes {capacity * per_token / 1e9:.1f} GB"
    if capacity * per_token > room:
        raise SettingsError(f"{size}, {room / 1e9:.1f} GB are free; set kv_tokens lower")
    try:
        decoder = open_decoder(model, capacity, dtype)
    except (MemoryError, RuntimeError, TypeError) as error:  # how PyTorch says that it cannot
        raise SettingsError(f"{size}, which cannot be allocated; set kv_tokens lower") from error
    limits = SchedulerLimits(settings.max_running, settings.step_tokens, settings.speculate)
    table = Table() if model.artefact is None else model.artefact.table
    guessing = drafter(model.variants, table)
    return Runner(decoder, Scheduler(decoder.cache, limits), guessing)


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
    runner = build_runner(model, settings, snapshot().memory_available_bytes.value)
    latency = step_model(model)

    def on_step(record: StepRecord) -> None:
        metrics.step.observe(record.seconds)
        controller.observe_step(record)

    def on_reread(answer: Answered, found: Reread) -> None:
        accounts.reread(answer, found)

    shadow = Shadow(runner.decoder, model.variants[BASE], settings.shadow_share, on_reread)
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

    controller = Controller(
        catalogue(model, settings),
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
        sensitivity=sensitivity(model, settings),
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
    accounts = Accounts(metrics, controller, shadow, snapshot, audit, settings.audit_prompts)
    encoder = PromptEncoder(model.tokenizer, model.weights.shape.vocab, longest)
    prompts = PromptReader(encoder, open_template(model.tokenizer), longest)
    service = Service(
        model,
        engine,
        controller,
        open_analyzer(settings, lambda name: metrics.analyzer_fallbacks.labels(name).inc()),
        accounts,
        Narrowing(model, settings.narrow),
        longest,
        settings.max_answers,
        settings.kv_scorer,
        prompts,
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
        accounts.close()

    app = FastAPI(title="Trimtab", lifespan=lifespan)
    readiness = Readiness(engine, stall_seconds(settings, latency, model.variants[BASE]))
    app.state.service = service
    app.state.readiness = readiness
    app.add_middleware(
        Limits,
        max_body_bytes=settings.max_body_bytes,
        door=Door(settings.api_key, settings.host, settings.allowed_hosts),
        draining=lambda: readiness.draining,
    )
    errors.install(app)
    app.include_router(system.public_router(service, readiness))
    app.include_router(page.public_router())
    for routes in (
        system.router(service, registry, refresh),
        generate.router(service),
        completions.router(service),
        chat.router(service),
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
    return StepTimeModel(model.weights.shape, {name: cost.own for name, cost in table.cost.items()})


def sensitivity(model: LoadedModel, settings: Settings) -> Sensitivity | None:
    """The predictor in the artefact's folder, if there is one. Raises `SensitivityError`."""
    folder = settings.artefact or shipped_artefact(model.name)
    if model.artefact is None or folder is None:
        return None
    return load_sensitivity(folder, model.fingerprint)


def make_policy(model: LoadedModel, settings: Settings) -> Policy:
    """The policy of the settings. Raises `SettingsError` or `PolicyError`."""
    names = list(model.variants)
    policy = named_policy(settings.policy, names, model.fingerprint, settings.force)
    return ExploringPolicy(policy, settings.explore) if settings.explore else policy


def catalogue(model: LoadedModel, settings: Settings) -> Catalogue:
    """The actions on offer, with the losses that the artefact's table holds."""
    table = Table() if model.artefact is None else model.artefact.table
    budgets = tuple(b for b in settings.kv_budgets if b < model.weights.context)
    known = {name: quality.kl for name, quality in table.quality.items()}
    predictor = sensitivity(model, settings)
    return Catalogue(
        variants=model.variants,
        kv_budgets=budgets,
        # Answers to real prompts say more than the table's text, where both were measured.
        variant_loss=known if predictor is None else {**known, **predictor.level},
        kv_loss={budget: quality.kl for budget, quality in table.kv_quality.items()},
    )


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
