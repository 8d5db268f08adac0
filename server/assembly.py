"""Builds the parts of a server from its settings: telemetry, engine, controller and logs.

Nothing here knows of HTTP; `server/app.py` adds the routes.
"""

import asyncio
from dataclasses import dataclass
from itertools import product

from controller import (
    Catalogue,
    Controller,
    ControllerSettings,
    StatusSources,
    StepTimeModel,
)
from controller.audit import AuditLog
from controller.engine_status import shallow_part
from controller.step_time_model import Coefficients
from policies import ExploringPolicy, Objectives, Policy
from policies.learned import LearnedPolicy
from policies.registry import named_policy
from pruners.artefact.table import Table
from pruners.kv import QUEST
from pruners.variant import BASE, VariantSpec
from server.api.model_names import ModelNames
from server.api.prompt.chat_template import open_template
from server.api.prompt.encoder import PromptEncoder
from server.api.prompt.processor import PromptProcessor
from server.api.request_log import RequestLog
from server.api.status_history import StatusHistory
from server.catalogue import build_catalogue, open_sensitivity, with_kv_method
from server.engine.cache.kv_cache import KVCache
from server.engine.cache.memory_allowance import MemoryAllowance
from server.engine.cache.memory_relief import MemoryRelief
from server.engine.engine import Engine
from server.engine.idle_works import IdleWorks
from server.engine.loading.load import LoadedModel
from server.engine.options import EngineOptions
from server.engine.runner_factory import build_runner
from server.engine.warmup import FirstMeasurements
from server.learning.background import BackgroundLearning
from server.learning.offer import Choices, RunningServer
from server.model_metrics import set_model_metrics
from server.monitoring import Monitoring, StepListener
from server.settings import Settings, SettingsError
from server.shadow.monitor import ShadowMonitor
from server.tracing import open_tracing
from telemetry import Sampler, ServerMetrics, default_sampler

_JOIN_SECONDS = 1.0  # that the engine's step in progress has, at the end
_STREAMED_BYTES, _MULTIPLY_ADDS = 10e9, 50e9  # a second, of a processor with few cores
_GPU_SPEED = 50.0
_MIN_STALL_SECONDS, _STALL_STEPS = 5.0, 10  # a step that takes longer than both hangs


@dataclass(frozen=True, slots=True)
class ServerParts:
    """All that works behind the routes. `context_tokens` limits prompt and answer together.

    `running` is what learning may add to.
    """

    monitoring: Monitoring
    cache: KVCache
    engine: Engine
    controller: Controller
    request_log: RequestLog
    prompts: PromptProcessor
    context_tokens: int
    learning: BackgroundLearning
    running: RunningServer
    history: StatusHistory

    def start(self) -> None:
        """Start the engine, learning and the history, in the running event loop."""
        self.engine.start()
        self.history.start()
        self.learning.start(self.running, self.monitoring.snapshot)

    def refresh_metrics(self) -> None:
        """Set the metrics that are read from the engine when they are asked for."""
        metrics, status = self.monitoring.metrics, self.engine.status()
        self.learning.status().set_metrics(metrics)
        metrics.requests_running.set(status.running)
        metrics.requests_waiting.set(status.waiting)
        metrics.kv_cache_usage.set(status.kv_used / status.kv_capacity)
        metrics.kv_cache_held.set(self.cache.arena.held * self.cache.slot_bytes)
        if metrics.vllm is not None:
            usage = status.kv_used / status.kv_capacity
            preemptions = self.running.runner.scheduler.preemptions
            metrics.vllm.set_load(status.running, status.waiting, usage, preemptions)

    async def close(self) -> None:
        """Stop learning, the engine, its helpers and the sampler, and close the audit log."""
        self.history.stop()
        await self.learning.stop()
        self.engine.stop(_JOIN_SECONDS)
        self.prompts.close()
        self.monitoring.stop()
        await self.request_log.close()
        if self.request_log.tracing is not None:
            await asyncio.to_thread(self.request_log.tracing.close)


def assemble(model: LoadedModel, settings: Settings, sampler: Sampler | None) -> ServerParts:
    """Return the parts of a server for a loaded model; the engine is not started.

    `sampler` replaces the readings of the machine, in tests. Raises `SettingsError`,
    `EngineConfigError`, `PolicyError` or `SensitivityError`.
    """
    if settings.kv_scorer == QUEST and not model.weights.selects_pages:
        raise SettingsError("kv_scorer quest needs int8 or int4 weights on a CPU; set weights so")
    monitoring = Monitoring(sampler or default_sampler(period_seconds=settings.telemetry_seconds))
    metrics = monitoring.metrics
    free_bytes = monitoring.snapshot().memory_available_bytes.value
    runner = build_runner(model, settings.to_engine_config(), free_bytes)
    listener = StepListener(metrics)
    learning = BackgroundLearning(model, settings)
    shadow = ShadowMonitor(runner.decoder, model.variants[BASE], settings.shadow_share)
    smallest = min(model.variants.values(), key=lambda v: v.parameters(model.weights.shape))
    first = FirstMeasurements(runner, [model.variants[BASE], smallest], listener.fit)
    engine = Engine(
        runner,
        model.tokenizer,
        EngineOptions(
            settings.max_waiting,
            settings.max_waiting_tokens,
            threads=settings.threads,
            on_step=listener,
            on_failure=metrics.count_failure,
            idle_work=IdleWorks(first, shadow),
            relief=_open_relief(runner.decoder.cache, monitoring),
            on_arrival=learning.note_request,
        ),
    )
    controller = build_controller(model, settings, engine, monitoring)
    listener.attach(controller)
    request_log = RequestLog(
        metrics, controller, shadow, monitoring.snapshot, _open_audit_log(settings, metrics),
        settings.audit_prompts,
    )  # fmt: skip
    served = ModelNames.of(settings.served_model_name, settings.model, model.name).served
    if settings.otlp_traces_endpoint is not None:
        request_log.tracing = open_tracing(settings.otlp_traces_endpoint, served)
    set_model_metrics(model, metrics, controller)
    metrics.policy.info(controller.policy_info())
    context_tokens = min(model.weights.context, runner.decoder.cache.arena.capacity)
    if settings.metrics_compat == "vllm":
        monitoring.add_vllm_names(served, context_tokens, runner.decoder.cache)
    prompts = _prompt_processor(model, context_tokens)
    running = RunningServer(
        model, runner, engine, controller,
        choices=lambda grown: make_choices(grown, settings),
        on_change=lambda: set_model_metrics(model, metrics, controller),
        serves_readers=settings.readers,
    )  # fmt: skip
    return ServerParts(
        monitoring, runner.decoder.cache, engine, controller, request_log, prompts, context_tokens,
        learning, running, StatusHistory(engine.status, monitoring.snapshot, request_log.recent),
    )  # fmt: skip


def build_controller(
    model: LoadedModel, settings: Settings, engine: Engine, monitoring: Monitoring
) -> Controller:
    """Return the controller of the settings; its step-time model is not fitted yet."""
    choices = make_choices(model, settings)
    return Controller(
        choices.catalogue,
        StepTimeModel(model.weights.shape, choices.own_weights, _declared_rates(model)),
        choices.policy,
        StatusSources(engine.status, monitoring.snapshot),
        ControllerSettings(
            default_objectives(settings),
            save_energy=settings.save_energy,
            dwell=settings.dwell_seconds,
        ),
        open_sensitivity(model),
    )


def make_choices(model: LoadedModel, settings: Settings) -> Choices:
    """Return what there is to choose from. Raises `PolicyError` or `SettingsError`."""
    predictor = open_sensitivity(model)
    catalogue = build_catalogue(model, settings.kv_budgets, predictor, settings.tasks_floor)
    catalogue = with_kv_method(catalogue, settings.kv_scorer)
    return Choices(catalogue, make_policy(model, catalogue, settings), own_weights(model))


def default_objectives(settings: Settings) -> Objectives:
    """Return the objectives of requests that name none."""
    return Objectives(
        ttft=_seconds(settings.ttft_ms),
        tpot=_seconds(settings.tpot_ms),
        max_loss=settings.max_loss,
        deadline=_seconds(settings.deadline_ms),
        firm=settings.refuse_late,
    )


def own_weights(model: LoadedModel) -> dict[str, int]:
    """Return how many numbers each variant reads beside the shared weights, by name.

    A shallow token also multiplies the maps of its reader.
    """
    table, shape = Table() if model.artefact is None else model.artefact.table, model.weights.shape
    own = {name: cost.correction_parameters for name, cost in table.cost.items()}
    for reader, variant in product(model.readers.values(), model.variants.values()):
        maps = (shape.layers - reader.depth) * shape.hidden * 2 * shape.kv_groups * shape.head_dim
        corrections = own.get(variant.name, 0) * reader.depth // shape.layers
        own[shallow_part(variant, reader.depth).name] = maps + corrections
    return own


def make_policy(model: LoadedModel, catalogue: Catalogue, settings: Settings) -> Policy:
    """Return the policy of the settings. Raises `PolicyError` or `SettingsError`."""
    choices = list(dict.fromkeys(action.choice for action in catalogue.actions()))
    policy = named_policy(settings.policy, choices, model.fingerprint, settings.force)
    if settings.kv_scorer == QUEST and isinstance(policy, LearnedPolicy):
        raise SettingsError(
            "policies are trained in a simulation whose KV budgets free memory: set kv_scorer to "
            "another than quest, or policy to rule"
        )
    return ExploringPolicy(policy, settings.explore) if settings.explore else policy


def stall_seconds(settings: Settings, step_times: StepTimeModel, base: VariantSpec) -> float:
    """Return how long a step may take before the engine counts as hanging.

    A large model on a slow host takes long for a full step, and longer while other processes run.
    """
    if settings.stall_seconds is not None:
        return settings.stall_seconds
    full_step = step_times.seconds([(base, settings.step_tokens, 0)], 1)
    return max(_MIN_STALL_SECONDS, _STALL_STEPS * full_step)


def _declared_rates(model: LoadedModel) -> Coefficients:
    """Return rates of steps as a common machine has them, until they are measured here."""
    weights = model.weights
    held = sum(tensor.nbytes for tensor in weights.tensors())
    per_weight = held / model.variants[BASE].parameters(weights.shape)
    speed = 1.0 if weights.device.type == "cpu" else _GPU_SPEED
    streamed, cached = (1e9 * size / _STREAMED_BYTES for size in (per_weight, 2.0))
    return 1e-3, streamed / speed, 1e9 / _MULTIPLY_ADDS / speed, cached / speed


def _open_relief(cache: KVCache, monitoring: Monitoring) -> MemoryRelief | None:
    """Bound the memory of a cache on the CPU by that of the host; return what gives it back."""
    if cache.keys.device.type != "cpu":
        return None
    cache.allowance = MemoryAllowance(monitoring.snapshot)
    return MemoryRelief(cache, cache.allowance, monitoring.metrics.count_given_back)


def _prompt_processor(model: LoadedModel, context_tokens: int) -> PromptProcessor:
    encoder = PromptEncoder(model.tokenizer, model.weights.shape.vocab, context_tokens)
    return PromptProcessor(encoder, open_template(model.tokenizer), context_tokens)


def _open_audit_log(settings: Settings, metrics: ServerMetrics) -> AuditLog | None:
    if settings.audit_log is None:
        return None
    on_lost = metrics.audit_lines_lost.inc
    return AuditLog(settings.audit_log, settings.audit_max_bytes, on_lost=on_lost)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
