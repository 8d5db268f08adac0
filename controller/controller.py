"""One decision for each request: observe, ask the policy, and learn from how it went."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from controller.catalogue import Catalogue
from controller.engine_status import EngineStatus, StepRecord
from controller.incoming import IncomingRequest
from controller.observer import ControllerSettings, Observer, StatusSources
from controller.quality_guard import QualityGuard
from controller.sensitivity import Sensitivity
from controller.step_time_model import StepTimeModel
from policies import (
    REFUSED,
    Action,
    Candidate,
    Constraint,
    ExploringPolicy,
    Observation,
    Policy,
    Reason,
    choice_label,
    propensities,
)
from policies.explore import ChooseFunction
from policies.hysteresis import choose_with_hysteresis


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen, why, and from what.

    `policy` is the policy's name, `seconds` the time that the decision took. `propensities` are the
    probabilities of all choices by label.
    """

    chosen: Candidate
    reason: Reason
    policy: str
    observation: Observation
    seconds: float
    propensities: dict[str, float]

    @property
    def action(self) -> Action:
        """The variant and the KV budget."""
        return self.chosen.action

    @property
    def masked(self) -> list[Constraint]:
        """The constraint of each action that the shield blocked."""
        return [c.blocked for c in self.observation.candidates if c.blocked is not None]

    @property
    def only_choice(self) -> bool:
        """Whether the request names the action, or there is no other."""
        return self.reason is Reason.PINNED or len(self.observation.candidates) == 1

    @property
    def work(self) -> float:
        """The predicted time that the action takes of a machine with full batches, in seconds."""
        return self.chosen.cost * self.observation.work

    @property
    def refused(self) -> bool:
        """Whether the request is turned away instead of being queued."""
        return self.reason in REFUSED


class Controller:
    """Chooses the action of each request, and keeps what is learned from requests and steps.

    A first estimate is made when a request arrives, by `decide`, which may refuse it. The action is
    chosen by `redecide` when its prompt is about to be read.

    Threads: the event loop calls `decide`, `observe_answer` and `observe_wait`, the engine's thread
    `redecide`. These share a lock. The engine's thread also calls `observe_step`, which never waits
    for that lock; neither does `quality_guard.observe`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        step_time_model: StepTimeModel,
        policy: Policy,
        sources: StatusSources,
        settings: ControllerSettings | None = None,
        sensitivity: Sensitivity | None = None,
    ) -> None:
        settings = settings or ControllerSettings()
        self.catalogue = catalogue
        self.step_time_model = step_time_model
        self.dwell = settings.dwell
        self._policy = policy
        self._observer = Observer(catalogue, step_time_model, sources, settings, sensitivity)
        self._lock = threading.Lock()  # of the observer's estimators

    @property
    def quality_guard(self) -> QualityGuard:
        """The comparison of losses in production with the table's."""
        return self._observer.quality_guard

    def extend(self, catalogue: Catalogue, policy: Policy, own_weights: Mapping[str, int]) -> None:
        """Let `policy` choose from a catalogue with further actions; what was learned stays.

        Called in the event loop. The catalogue has all actions of the one before, since decisions
        for them are under way. `own_weights` are as `StepTimeModel` has them.
        """
        with self._lock:
            self.step_time_model.add_variants(own_weights)
            self.quality_guard.expect(catalogue.expected_losses())
            self._observer.extend(catalogue)
            self.catalogue, self._policy = catalogue, policy

    def decide(self, request: IncomingRequest) -> Decision:
        """Choose the action for a request. A variant that the request names must exist."""
        started = time.perf_counter()
        with self._lock:
            observation = self._observer.observe(request)
            action, reason = self._choose(observation)
            self._observer.estimators.dwell.observe(observation, action.variant, reason)
        return self._decision(observation, (action, reason), self._choose, started)

    def redecide(
        self, request: IncomingRequest, first: Decision, others: EngineStatus, waited: float
    ) -> Decision:
        """Choose the action of an accepted request that starts now, with the queue as it is now.

        `first` is the decision of its arrival, `waited` seconds ago; `others` are the other
        requests. It is not refused any more, and it does not arrive twice: all that is learned is
        the variant, which stays for the dwell time.
        """
        started = time.perf_counter()
        with self._lock:
            observation = self._observer.observe_start(request, first.observation, others, waited)
            made = self._choose_accepted(observation)
            self._observer.started.observe(observation, made[0].variant, made[1])
        return self._decision(observation, made, self._choose_accepted, started)

    def _decision(
        self,
        observation: Observation,
        made: tuple[Action, Reason],
        choose: ChooseFunction,
        started: float,
    ) -> Decision:
        """Return the decision `made` by `choose`, begun at `started` by `time.perf_counter`."""
        action, reason = made
        chosen = next(c for c in observation.candidates if c.action == action)
        seconds = time.perf_counter() - started
        probabilities = {choice_label(action, reason): 1.0}
        if isinstance(self._policy, ExploringPolicy):
            probabilities = propensities(self._policy, observation, choose)
        return Decision(chosen, reason, self._policy.name, observation, seconds, probabilities)

    def _choose(self, observation: Observation) -> tuple[Action, Reason]:
        return choose_with_hysteresis(observation, self._policy, self.dwell)

    def _choose_accepted(self, observation: Observation) -> tuple[Action, Reason]:
        """Choose for a request that is served even if it is too late."""
        action, reason = self._choose(observation)
        return action, Reason.LEAST_BAD if reason in REFUSED else reason

    def predict_wait(self) -> float:
        """Return the seconds that a request behind all others would wait now."""
        with self._lock:
            return self._observer.predict_wait()

    def observe(self, request: IncomingRequest) -> Observation:
        """Return what the policy is shown for a request, which counts as arriving now."""
        with self._lock:
            return self._observer.observe(request)

    def policy_info(self) -> dict[str, str]:
        """Return the policy's name and the dwell time, for metrics."""
        return {"name": self._policy.name, "dwell_seconds": f"{self.dwell:g}"}

    def observe_step(self, record: StepRecord) -> None:
        """Learn from one step of the engine how long steps take."""
        self.step_time_model.observe(record)

    def observe_answer(self, max_tokens: int, tokens: int) -> None:
        """Learn from an answer of `tokens` tokens that was allowed `max_tokens`."""
        with self._lock:
            self._observer.estimators.answer_length.observe(max_tokens, tokens)

    def observe_wait(self, decision: Decision, seconds: float) -> None:
        """Learn from the seconds that a request was in the queue."""
        with self._lock:
            self._observer.estimators.wait_bias.observe(decision.observation.wait, seconds)
