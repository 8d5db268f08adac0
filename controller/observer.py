"""Joins a request, telemetry and the engine's status into an observation."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from controller.analyzer import PromptFeatures
from controller.catalogue import Catalogue
from controller.engine_status import EngineStatus
from controller.forecast import Forecast
from controller.quality_guard import QualityGuard
from controller.sensitivity import Sensitivity
from controller.shield import Shield, ShieldSettings
from controller.step_time_model import StepTimeModel
from policies import Action, Candidate, Objectives, Observation
from policies.candidates import RequestTokens, add_kv_loss, build_candidates
from policies.estimators import RequestEstimators
from policies.observation import HOT_CELSIUS
from pruners.reading.reader import FULL
from pruners.variant import BASE
from telemetry import Snapshot


@dataclass(frozen=True, slots=True)
class RequestPreferences:
    """What a request asks of the controller: objectives, and an action or parts of it by name.

    A named `variant` or `kv_budget` (tokens) is a pin: it wins over the policy. `reader` is the
    name of a reader, `pruners.reading.reader.FULL` for none; None leaves it to the policy, or to a
    pin, which reads in full.
    """

    objectives: Objectives = field(default_factory=Objectives)
    variant: str | None = None
    kv_budget: int | None = None
    reader: str | None = None

    @property
    def pinned(self) -> Action | None:
        """The action that the request names; None if it names none. The default is the base."""
        if self.variant is None and self.kv_budget is None:
            return None
        reader = None if self.reader == FULL else self.reader
        return Action(BASE if self.variant is None else self.variant, self.kv_budget, reader)


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A request as the controller sees it.

    `reusable` are the prompt tokens that the prefix cache holds, by the names of the variant and of
    the reader (None: in full).
    """

    features: PromptFeatures
    prompt_tokens: int
    max_tokens: int
    preferences: RequestPreferences = field(default_factory=RequestPreferences)
    reusable: Mapping[tuple[str, str | None], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StatusSources:
    """Where the controller reads the present state: functions, and a clock in seconds."""

    engine: Callable[[], EngineStatus]
    telemetry: Callable[[], Snapshot]
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Settings of the controller.

    `objectives` hold for requests that name none. With `save_energy`, answers are always cut to
    save energy. After a change of variant, the new one stays for `dwell` seconds.
    """

    objectives: Objectives = field(default_factory=Objectives)
    shield: ShieldSettings = field(default_factory=ShieldSettings)
    save_energy: bool = False
    dwell: float = 1.0


@dataclass(frozen=True, slots=True)
class _Moment:
    """What was read for one request, all of it once, so that it fits together."""

    status: EngineStatus
    snapshot: Snapshot
    forecast: Forecast
    objectives: Objectives
    tokens: RequestTokens


class Observer:
    """Builds observations, and keeps what is learned from earlier requests.

    Threads: one at a time calls `observe` and uses `estimators`. Other threads may change the
    step-time model and the quality guard meanwhile.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        step_time_model: StepTimeModel,
        sources: StatusSources,
        settings: ControllerSettings,
        sensitivity: Sensitivity | None,
    ) -> None:
        """Without a `sensitivity`, a variant's predicted loss is its mean loss for every prompt."""
        self._catalogue = catalogue
        self._actions = catalogue.actions()
        self._step_time_model = step_time_model
        self._sources = sources
        self._settings = settings
        self._sensitivity = sensitivity
        self.quality_guard = QualityGuard(catalogue.variant_loss)
        self.estimators = RequestEstimators(sources.clock)
        self._random = random.Random()

    def observe(self, request: IncomingRequest) -> Observation:
        """Return what the policy is shown. The request counts as arriving now."""
        moment, known = self._read_moment(request), self.estimators
        base = self._catalogue.variants[BASE]
        work = moment.forecast.work(base, moment.tokens, request.reusable.get((BASE, None), 0))
        known.observe_arrival(work, idle=not moment.status.sequences)
        rank = known.sizes.rank(work)
        held, held_seconds = known.dwell.current(moment.objectives, rank)
        battery = moment.snapshot.on_battery.value
        return Observation(
            candidates=self._candidates(request, moment),
            objectives=moment.objectives,
            wait=moment.forecast.wait,
            complexity=request.features.complexity,
            on_battery=None if battery is None else bool(battery),
            battery_charge=moment.snapshot.battery_charge_ratio.value,
            hot=_is_hot(moment.snapshot),
            save_energy=self._settings.save_energy,
            pinned=request.preferences.pinned,
            held=held,
            held_seconds=held_seconds,
            demand=known.load.value,
            rank=rank,
            draw=self._random.random(),
        )

    def _read_moment(self, request: IncomingRequest) -> _Moment:
        status, known = self._sources.engine(), self.estimators
        expected_output = known.answer_length.expected
        forecast = Forecast(
            self._step_time_model.now, status, expected_output, known.wait_bias.factor
        )
        return _Moment(
            status,
            self._sources.telemetry(),
            forecast,
            _with_defaults(request.preferences.objectives, self._settings.objectives),
            RequestTokens(request.prompt_tokens, int(expected_output(request.max_tokens))),
        )

    def _candidates(self, request: IncomingRequest, moment: _Moment) -> tuple[Candidate, ...]:
        tokens, variants = moment.tokens, self._catalogue.variants
        shield = Shield(
            self._settings.shield,
            moment.status,
            moment.snapshot,
            self.estimators.answer_length.expected,
            moment.objectives.max_loss,
        )
        relative = {} if self._sensitivity is None else self._sensitivity.relative(request.features)
        variant_losses = self._catalogue.variant_losses(relative)
        corrections = {name: self.quality_guard.loss_correction(name) for name in variants}
        kv_loss, total = self._catalogue.kv_loss, tokens.total

        def loss_of(action: Action) -> float | None:
            name, budget = action.variant, action.kv_budget
            loss = variant_losses[name]
            if budget is not None:
                loss = add_kv_loss(loss, kv_loss, budget, total)
            return None if loss is None else loss + corrections[name]

        pinned = request.preferences.pinned
        actions = self._actions
        if pinned is not None and pinned not in actions:
            actions = [*actions, pinned]
        forecasts = moment.forecast.by_variant(variants.values(), tokens, request.reusable)
        return build_candidates(actions, forecasts, tokens, loss_of, shield.blocked_by)


def _is_hot(snapshot: Snapshot) -> bool | None:
    """Return whether any sensor says that the host is too hot; None where there is no sensor."""
    readings = [(snapshot.temperature_celsius.value, HOT_CELSIUS)]
    readings += [(gpu.throttled.value, 0.5) for gpu in snapshot.gpus]
    known = [value > limit for value, limit in readings if value is not None]
    return any(known) if known else None


def _with_defaults(wanted: Objectives, defaults: Objectives) -> Objectives:
    """Return a request's objectives, with the server's where it names none."""
    return Objectives(
        ttft=defaults.ttft if wanted.ttft is None else wanted.ttft,
        tpot=defaults.tpot if wanted.tpot is None else wanted.tpot,
        max_loss=defaults.max_loss if wanted.max_loss is None else wanted.max_loss,
        deadline=defaults.deadline if wanted.deadline is None else wanted.deadline,
        firm=defaults.firm,
    )
