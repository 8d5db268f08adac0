"""One decision per request: observe, shield, ask the policy, remember how it went."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from controller.analyzer import PromptFeatures
from controller.catalogue import Catalogue
from controller.engine_status import EngineStatus, StepRecord
from controller.forecast import Forecast
from controller.quality_guard import QualityGuard
from controller.sensitivity import Sensitivity
from controller.shield import Shield, ShieldSettings
from controller.step_time_model import StepTimeModel
from policies import (
    REFUSED,
    Action,
    Candidate,
    Constraint,
    ExploringPolicy,
    Objectives,
    Observation,
    Policy,
    Reason,
    label_of,
    propensities,
)
from policies.estimators.dwell import DwellTracker
from policies.estimators.load import (
    AnswerLengthEstimator,
    LoadEstimator,
    RequestSizes,
    WaitBiasEstimator,
)
from policies.hysteresis import choose_with_hysteresis
from policies.observation import HOT_CELSIUS
from pruners.variant import BASE
from telemetry import Snapshot


@dataclass(frozen=True, slots=True)
class RequestPreferences:
    """What a request asks of the controller. Pins win over the policy."""

    objectives: Objectives = field(default_factory=Objectives)
    variant: str | None = None
    kv_budget: int | None = None

    @property
    def pinned(self) -> Action | None:
        """The action that the pins name, if there are any; what is left open is the base's."""
        if self.variant is None and self.kv_budget is None:
            return None
        return Action(BASE if self.variant is None else self.variant, self.kv_budget)


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A request as the controller sees it.

    `reusable` says how many of its prompt's tokens a variant has cached already, by its name.
    """

    features: PromptFeatures
    prompt_tokens: int
    max_tokens: int
    hints: RequestPreferences = field(default_factory=RequestPreferences)
    reusable: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen of what was observed, why, and what the choice cost in seconds.

    `propensities` say how often the policy would have chosen what, by the actions' labels.
    """

    chosen: Candidate
    reason: Reason
    policy: str
    observation: Observation
    seconds: float
    propensities: dict[str, float]

    @property
    def action(self) -> Action:
        """The variant and KV budget."""
        return self.chosen.action

    @property
    def masked(self) -> list[Constraint]:
        """Why the shield ruled actions out, one for each of them."""
        return [c.blocked for c in self.observation.candidates if c.blocked is not None]

    @property
    def refused(self) -> bool:
        """Whether the request should be turned away, not queued."""
        return self.reason in REFUSED


class Controller:
    """Joins prompt, telemetry and load into an observation and has the policy choose."""

    def __init__(
        self,
        catalogue: Catalogue,
        step_time_model: StepTimeModel,
        policy: Policy,
        load: Callable[[], EngineStatus],
        telemetry: Callable[[], Snapshot],
        defaults: Objectives,
        shield: ShieldSettings | None = None,
        sensitivity: Sensitivity | None = None,
        save_energy: bool = False,
        dwell: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalogue = catalogue
        self._every = catalogue.actions()
        self.step_time_model = step_time_model
        self._policy = policy
        self._load = load
        self._telemetry = telemetry
        self._defaults = defaults
        self._shield = shield or ShieldSettings()
        self._length = AnswerLengthEstimator()
        self.quality_guard = QualityGuard(catalogue.variant_loss)
        self._sensitivity = sensitivity
        self._save_energy = save_energy
        self.dwell = dwell
        self._clock = clock
        self._held = DwellTracker(clock)
        self._demand, self._sizes, self._bias = LoadEstimator(), RequestSizes(), WaitBiasEstimator()
        self._chance = random.Random()

    def decide(self, newcomer: IncomingRequest) -> Decision:
        """Chooses the action for one request. Pinned names are expected to exist."""
        started = time.perf_counter()
        observation = self.observe(newcomer)
        action, reason = self._choose(observation)
        self._held.note(observation, action.variant, reason)
        chosen = next(c for c in observation.candidates if c.action == action)
        seconds = time.perf_counter() - started
        odds = {label_of(action, reason): 1.0}
        if isinstance(self._policy, ExploringPolicy):
            odds = propensities(self._policy, observation, self._choose)
        return Decision(chosen, reason, self._policy.name, observation, seconds, odds)

    def _choose(self, observation: Observation) -> tuple[Action, Reason]:
        return choose_with_hysteresis(observation, self._policy, self.dwell)

    def observe(self, newcomer: IncomingRequest) -> Observation:
        """What the policy is shown for this request, which counts as arriving now."""
        hints, prompt_tokens, reusable = newcomer.hints, newcomer.prompt_tokens, newcomer.reusable
        load, snapshot = self._load(), self._telemetry()
        forecast = Forecast(self.step_time_model, load, self._length.expected, self._bias.factor)
        shield = Shield(self._shield, load, snapshot, self._length.expected)
        objectives = Objectives(
            ttft=_either(hints.objectives.ttft, self._defaults.ttft),
            tpot=_either(hints.objectives.tpot, self._defaults.tpot),
            max_loss=_either(hints.objectives.max_loss, self._defaults.max_loss),
            deadline=_either(hints.objectives.deadline, self._defaults.deadline),
            firm=self._defaults.firm,
        )
        output = int(self._length.expected(newcomer.max_tokens))
        expected = prompt_tokens + output
        base = self.catalogue.variants[BASE]
        work = forecast.work(base, prompt_tokens, output, reusable.get(BASE, 0))
        self._demand.add(self._clock(), work, idle=not load.sequences)
        self._sizes.add(work)
        relative = (
            {} if self._sensitivity is None else self._sensitivity.relative(newcomer.features)
        )
        variants = self.catalogue.variants
        asked = forecast.timings(variants.values(), prompt_tokens, output, reusable)
        timings = dict(zip(variants, asked, strict=True))
        candidates = []
        for action in self._actions(hints):
            cached = expected if action.kv_budget is None else min(expected, action.kv_budget)
            timing = timings[action.variant]
            ttft = timing.ttft if action.kv_budget is None else timing.afresh
            tpot = timing.tpot + cached * timing.per_cached
            loss = self.catalogue.loss(action, expected, relative.get(action.variant, 1.0))
            if loss is not None:
                loss += self.quality_guard.loss_correction(action.variant)
            candidates.append(
                Candidate(
                    action=action,
                    loss=loss,
                    cost=timing.cost,
                    ttft=ttft,
                    tpot=tpot,
                    total=ttft + tpot * output,
                    blocked=shield.blocked(cached, loss, objectives.max_loss),
                )
            )
        battery = snapshot.on_battery.value
        rank = self._sizes.rank(work)
        held, held_seconds = self._held.by(objectives, rank)
        return Observation(
            candidates=tuple(candidates),
            objectives=objectives,
            wait=forecast.wait,
            complexity=newcomer.features.complexity,
            on_battery=None if battery is None else bool(battery),
            battery_charge=snapshot.battery_charge_ratio.value,
            hot=_hot(snapshot),
            save_energy=self._save_energy,
            pinned=hints.pinned,
            held=held,
            held_seconds=held_seconds,
            demand=self._demand.value,
            rank=rank,
            draw=self._chance.random(),
        )

    def policy_info(self) -> dict[str, str]:
        """Name of the policy and what it keeps to."""
        return {"name": self._policy.name, "dwell_seconds": f"{self.dwell:g}"}

    def observe_step(self, record: StepRecord) -> None:
        """Called by the engine after every step."""
        self.step_time_model.observe(record)

    def observe_answer(self, most: int, tokens: int) -> None:
        """Learns how long answers are, of the `most` tokens that they may have."""
        self._length.learn(most, tokens)

    def observe_wait(self, decision: Decision, seconds: float) -> None:
        """Learns how long a request was in the queue."""
        self._bias.learn(decision.observation.wait, seconds)

    def _actions(self, hints: RequestPreferences) -> list[Action]:
        actions, pinned = self._every, hints.pinned
        return actions if pinned is None or pinned in actions else [*actions, pinned]


def _hot(snapshot: Snapshot) -> bool | None:
    """Whether any sensor says that the host is too hot; None where there is no sensor."""
    readings = [snapshot.temperature_celsius.value, *(g.throttled.value for g in snapshot.gpus)]
    limits = [HOT_CELSIUS, *(0.5 for _ in snapshot.gpus)]
    known = [
        value > limit for value, limit in zip(readings, limits, strict=True) if value is not None
    ]
    return any(known) if known else None


def _either(first: float | None, second: float | None) -> float | None:
    return second if first is None else first
