"""Joins a request, telemetry and the engine's status into an observation."""

import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from controller.catalogue import Catalogue
from controller.engine_status import EngineStatus
from controller.forecast import Forecast
from controller.incoming import IncomingRequest
from controller.quality_guard import QualityGuard
from controller.reading import IncomingPrompt, ServedChoice
from controller.sensitivity import Sensitivity
from controller.shield import Shield, ShieldSettings
from controller.step_time_model import StepTimeModel
from policies import Action, Candidate, Objectives, Observation
from policies.candidates import RequestTokens, add_kv_loss, add_reader_loss, build_candidates
from policies.estimators import RequestEstimators
from policies.estimators.dwell import DwellTracker
from policies.observation import HOT_CELSIUS, Constraint
from pruners.variant import BASE
from telemetry import Snapshot


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
    work: float  # of the request by the base in full, in seconds of full batches


class Observer:
    """Builds observations, and keeps what is learned from earlier requests.

    Threads: one at a time calls `observe` and uses `estimators`. Other threads may change the
    step-time model and the quality guard meanwhile. `started` holds the variants of requests that
    have started; those of the estimates at their arrival are in `estimators`.
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
        self.extend(catalogue)
        self.quality_guard = QualityGuard(catalogue.expected_losses())
        self._step_time_model = step_time_model
        self._sources = sources
        self._settings = settings
        self._sensitivity = sensitivity
        self.estimators = RequestEstimators(sources.clock)
        self.started = DwellTracker(sources.clock)  # of final decisions
        self._random = random.Random()

    def extend(self, catalogue: Catalogue) -> None:
        """Take a catalogue with further actions in the place of the one before."""
        self._catalogue, self._actions = catalogue, catalogue.actions()
        self._choices = {a.choice: catalogue.choice(a.variant, a.reader) for a in self._actions}

    def observe(self, request: IncomingRequest) -> Observation:
        """Return what the policy is shown. The request counts as arriving now."""
        moment, known = self._read_moment(request, self._sources.engine()), self.estimators
        known.observe_arrival(moment.work, idle=not moment.status.sequences)
        rank = known.sizes.rank(moment.work)
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
            waiting=moment.status.waiting,
            work=moment.work,
        )

    def predict_wait(self) -> float:
        """Return the seconds that a request behind all others would wait now."""
        return self._forecast(self._sources.engine()).wait

    def observe_start(
        self, request: IncomingRequest, first: Observation, others: EngineStatus, waited: float
    ) -> Observation:
        """Return what the policy is shown of an accepted request that starts now.

        `wait` is what another request would meet now, behind all `others`. The request's own times
        count from its arrival, when `first` was observed: it `waited` so many seconds, and shares
        steps with those that run. Nothing is learned of it, and it cannot be refused.
        """
        running = replace(others, sequences=tuple(s for s in others.sequences if s.running))
        moment = self._read_moment(request, running)
        moment.forecast.wait += waited
        held, held_seconds = self.started.current(moment.objectives, first.rank)
        battery = moment.snapshot.on_battery.value
        return replace(
            first,
            candidates=self._candidates(request, moment),
            objectives=moment.objectives,
            wait=self._forecast(others).wait,
            queued=moment.forecast.wait,
            on_battery=None if battery is None else bool(battery),
            battery_charge=moment.snapshot.battery_charge_ratio.value,
            hot=_is_hot(moment.snapshot),
            held=held,
            held_seconds=held_seconds,
            demand=self.estimators.load.value,
            draw=self._random.random(),  # of its own, since the first one may have refused
            waiting=others.waiting,
        )

    def _forecast(self, status: EngineStatus) -> Forecast:
        known = self.estimators
        return Forecast(
            self._step_time_model.now, status, known.answer_length.expected, known.wait_bias.factor
        )

    def _read_moment(self, request: IncomingRequest, status: EngineStatus) -> _Moment:
        output = int(self.estimators.answer_length.expected(request.max_tokens))
        tokens = RequestTokens(request.prompt_tokens, output)
        forecast = self._forecast(status.ahead_of(request.client))
        base, cached = self._catalogue.variants[BASE], request.reusable.get((BASE, None), 0)
        return _Moment(
            status,
            self._sources.telemetry(),
            forecast,
            request.preferences.objectives.filled_from(self._settings.objectives),
            tokens,
            forecast.work(base, tokens, cached),
        )

    def _candidates(self, request: IncomingRequest, moment: _Moment) -> tuple[Candidate, ...]:
        tokens, catalogue = moment.tokens, self._catalogue
        shield = Shield(
            self._settings.shield,
            moment.status,
            moment.snapshot,
            self.estimators.answer_length.expected,
            moment.objectives.max_loss,
        )
        actions = [action for action in self._actions if request.allows(action)]
        pinned = request.preferences.pinned
        if pinned is not None and pinned not in actions:
            actions.append(pinned)
        choices = self._chosen(actions)
        prompt = IncomingPrompt(request.prompt_tokens, request.reusable, request.full_from)
        losses = uncached = self._losses(request, choices, prompt)
        if request.reusable:  # by an answer with a budget it is not used
            uncached = self._losses(request, choices, replace(prompt, reusable={}))
        kv_loss, total = catalogue.kv_loss, tokens.total

        def loss_of(action: Action) -> float | None:
            budget = action.kv_budget
            if budget is None:
                return losses[action.choice]
            return add_kv_loss(uncached[action.choice], kv_loss, budget, total)

        def blocked_by(cached: int, loss: float | None) -> Constraint | None:
            return shield.blocked_by(cached if catalogue.budgets_free_memory else total, loss)

        forecasts = moment.forecast.by_choice(choices.values(), tokens, prompt, moment.work)
        return build_candidates(
            actions, forecasts, tokens, loss_of, blocked_by, catalogue.keep_tasks
        )

    def _chosen(self, actions: Iterable[Action]) -> dict[str, ServedChoice]:
        """Return the choices of actions by label."""
        known, chosen = self._choices, {}
        for action in actions:
            label = action.choice
            if label not in chosen:
                chosen[label] = known.get(label) or self._catalogue.choice(
                    action.variant, action.reader
                )
        return chosen

    def _losses(
        self, request: IncomingRequest, choices: Mapping[str, ServedChoice], prompt: IncomingPrompt
    ) -> dict[str, float | None]:
        """Return the predicted loss of each choice on this prompt, in nats per token.

        What a reader loses is taken to be in proportion to the shallow tokens that it reads now or
        has read before (`newly_shallow`).
        """
        relative = {} if self._sensitivity is None else self._sensitivity.relative(request.features)
        writing = self._catalogue.variant_losses(relative)
        reading = self._catalogue.reader_losses(request.prompt_tokens, relative)
        losses, correction_of = {}, self.quality_guard.loss_correction
        for label, choice in choices.items():
            loss = writing[choice.variant.name]
            if choice.reader is not None:
                read = reading[choice.reader]
                if read is not None:
                    read *= prompt.newly_shallow(choice)
                loss = add_reader_loss(loss, read)
            losses[label] = None if loss is None else loss + correction_of(label)
        return losses


def _is_hot(snapshot: Snapshot) -> bool | None:
    """Return whether any sensor says that the host is too hot; None where there is no sensor."""
    readings = [(snapshot.temperature_celsius.value, HOT_CELSIUS)]
    limit = snapshot.cpu_speed_limit_ratio.value
    readings += [(None if limit is None else 1.0 - limit, 0.0)]
    readings += [(gpu.throttled.value, 0.5) for gpu in snapshot.gpus]
    known = [value > limit for value, limit in readings if value is not None]
    return any(known) if known else None
