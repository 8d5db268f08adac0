"""A simulated server: what a policy would be shown of each request, and how each request went."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from policies.candidates import (
    RequestTokens,
    VariantForecast,
    add_kv_loss,
    build_candidates,
    check_constraints,
)
from policies.estimators import RequestEstimators
from policies.features import REFUSE, FeatureInputs, feature_vector, is_too_late
from policies.hysteresis import choose_with_hysteresis
from policies.observation import HOT_CELSIUS, REFUSED, Action, Objectives, Observation, Policy
from policies.simulation.choices import losses_by_choice, profile_actions, profile_choices
from policies.simulation.engine import EngineLimits, SimulatedEngine
from policies.simulation.host import MAINS, HostScenario, SimulatedHost
from policies.simulation.outcome import Outcome
from policies.simulation.profile import Profile
from policies.simulation.simulated_request import SimulatedRequest
from policies.simulation.traffic import Arrival

DWELL_SECONDS = 1.0
"""The server's default."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a simulated server works under. `seed` is for the policy's random draws."""

    objectives: Objectives = field(default_factory=Objectives)
    limits: EngineLimits = field(default_factory=EngineLimits)
    host: HostScenario = MAINS
    seed: int = 0


@dataclass(slots=True)
class _CurrentRequest:
    """The request that has arrived and waits for its decision."""

    arrival: Arrival
    index: int
    expected_output: float = 0.0
    work: float = 0.0  # seconds of full batches of the base
    wait: float = 0.0  # predicted seconds in the queue


class SimulatedServer:
    """One run of traffic through engine, host and estimators.

    Call `arrive` and `take` in turn until `arrive` returns False. `prompts` are rows of the
    profile, one for each arrival. The decision itself is `decide`'s business.
    """

    def __init__(
        self,
        profile: Profile,
        arrivals: Sequence[Arrival],
        prompts: Sequence[int],
        scenario: Scenario,
    ) -> None:
        self.profile, self.objectives = profile, scenario.objectives
        self.limits = scenario.limits
        self._arrivals = arrivals
        self.host = SimulatedHost(scenario.host)
        self.engine = SimulatedEngine(
            profile.rates, self.limits, self._on_finished, self.host.spend
        )
        self.outcomes: list[Outcome | None] = [None] * len(arrivals)
        self.finished: list[int] = []  # requests since the caller last emptied it
        self._random = random.Random(scenario.seed)
        self.estimators = RequestEstimators(lambda: self.engine.clock)
        self._predicted_waits = [0.0] * len(arrivals)
        self._taken = [0] * len(arrivals)  # numbers of choices
        self._next = -1
        self.choices = profile_choices(profile)
        self._actions = profile_actions(profile, self.choices)
        self._numbers = {one.action.choice: number for number, one in enumerate(self.choices)}
        self._budgets = sorted(profile.kv_loss, reverse=True)
        self._with_budgets = len(self.choices) - len(profile.pairs)
        known, tokens = profile.prompts, [arrival.prompt for arrival in arrivals]
        self._complexity = known.complexity[prompts].tolist()
        self._predicted, self._loss, self._surprise = (
            losses_by_choice(self.choices, losses[prompts], tokens).tolist()
            for losses in (known.predicted, known.loss, known.surprise)
        )

    def arrive(self) -> bool:
        """Move on to the next arrival. False if there is none; then everything has ended."""
        self._next += 1
        if self._next >= len(self._arrivals):
            self.engine.finish()
            return False
        arrival, known = self._arrivals[self._next], self.estimators
        self.engine.advance(arrival.at)
        request = self._request = _CurrentRequest(arrival, self._next)
        request.expected_output = known.answer_length.expected(arrival.output)
        request.work = self._work(0, arrival.prompt, int(request.expected_output))
        known.observe_arrival(request.work, self.engine.idle)
        self._running = self.engine.running_step()
        request.wait = self.engine.predict_wait(self._running) * known.wait_bias.factor
        self._predicted_waits[self._next] = request.wait
        return True

    def take(self, action: int | None) -> None:
        """Serve the current request by a choice with the largest cache that fits; None refuses it.

        A request whose cache does not fit is refused, and so is every request once the battery is
        empty.
        """
        request, arrival = self._request, self._request.arrival
        cached = None if action is None else self._largest_cache(action)
        if action is None or cached is None or self.host.charge == 0.0:
            self.outcomes[request.index] = Outcome(None, False)
            self.finished.append(request.index)
            return
        choice = self.choices[action]
        self.engine.submit(
            SimulatedRequest(
                request.index, choice.variant, arrival.at, arrival.prompt, arrival.output, cached,
                request.expected_output, choice.time.share(arrival.prompt),
            )
        )  # fmt: skip
        self._taken[request.index] = action

    def outcome(self, index: int) -> Outcome:
        """Return how a request that has ended went."""
        outcome = self.outcomes[index]
        assert outcome is not None, "it has not ended"
        return outcome

    def number_of(self, action: Action) -> int:
        """Return the number of an action's choice."""
        return self._numbers[action.choice]

    def features(self) -> np.ndarray:
        """Return the current request's features, `[features]`, as `observation_vector` has them.

        Training needs nothing else of an observation, and this is much faster than building one.
        """
        request, charge = self._request, self.host.charge
        tokens = request.arrival.prompt + int(request.expected_output)
        step = self.engine.predict_decode_step(self._running, 0)
        return feature_vector(
            FeatureInputs(
                objectives=self.objectives,
                wait=request.wait,
                load=self.estimators.load.value,
                prefill=self.engine.predict_prefill(self._running, 0, request.arrival.prompt),
                tpot=step + tokens * self.profile.rates.cached[0],
                complexity=self._complexity[request.index],
                charge=charge,
                on_battery=charge is not None,
                hot=self._hot(),
                save_energy=False,
                losses=self._predicted[request.index],
            )
        )

    def open_choices(self) -> np.ndarray:
        """Return `[choices]` of bool for the current request, as `policies.features` has them."""
        request, sizes = self._request, self.estimators.sizes
        late = is_too_late(self.objectives, request.wait, lambda: sizes.rank(request.work))
        fits, last = self._largest_cache(0) is not None, len(self.choices) - 1
        whole = self._largest_cache(last) is not None
        pairs = len(self.choices) - self._with_budgets
        return np.array([fits] * self._with_budgets + [whole] * pairs + [late])

    def observation(self, use_truth: bool = False) -> Observation:
        """Return the current request as the server's policies are shown it.

        With `use_truth`, losses and the answer's length are the true ones, not predictions.
        """
        request, arrival, known = self._request, self._request.arrival, self.estimators
        losses = (self._loss if use_truth else self._predicted)[request.index]
        output = arrival.output if use_truth else int(request.expected_output)
        tokens = RequestTokens(arrival.prompt, output)

        def loss_of(action: Action) -> float | None:
            loss = losses[self._numbers[action.choice]]
            return add_kv_loss(loss, self.profile.kv_loss, action.kv_budget, tokens.total)

        candidates = build_candidates(
            self._actions,
            self._forecasts(tokens),
            tokens,
            loss_of,
            lambda cached, loss: check_constraints(
                cached, self._kv_free(), loss, self.objectives.max_loss
            ),
            self.profile.keep_tasks,
        )
        rank, charge = known.sizes.rank(request.work), self.host.charge
        held, held_seconds = known.dwell.current(self.objectives, rank)
        return Observation(
            candidates=candidates,
            objectives=self.objectives,
            wait=request.wait,
            complexity=self._complexity[request.index],
            on_battery=None if charge is None else True,
            battery_charge=charge,
            hot=self._hot(),
            held=held,
            held_seconds=held_seconds,
            demand=known.load.value,
            rank=rank,
            draw=self._random.random(),
        )

    def _forecasts(self, tokens: RequestTokens) -> dict[str, VariantForecast]:
        """Return what is predicted for the current request by each choice."""
        engine, running, wait = self.engine, self._running, self._request.wait
        base_work, forecasts = self._work(0, *tokens), {}
        for number, choice in enumerate(self.choices):
            variant, reading = choice.variant, choice.time.share(tokens.prompt)
            ttft = wait + engine.predict_prefill(running, variant, tokens.prompt, reading)
            forecasts[choice.action.choice] = VariantForecast(
                ttft=ttft,
                ttft_uncached=ttft,  # there is no prefix cache
                tpot=engine.predict_decode_step(running, variant),
                tpot_per_cached=self.profile.rates.cached[variant],
                cost=self._work(number, *tokens) / base_work,
            )
        return forecasts

    def _work(self, number: int, prompt: int, output: int) -> float:
        rates, rows = self.profile.rates, self.limits.max_running
        return self.choices[number].work(rates, prompt, output, rows)

    def _kv_free(self) -> int:
        return self.limits.kv_tokens - self.engine.kv_promised

    def _largest_cache(self, number: int) -> int | None:
        """Return the tokens of the largest cache of a choice that fits; None if none does."""
        _, prompt, output = self._request.arrival
        tokens, free = prompt + output, self._kv_free()
        if tokens <= free:
            return tokens
        if number >= self._with_budgets:
            return None
        sizes = (min(tokens, budget) for budget in self._budgets)
        return next((size for size in sizes if size <= free), None)

    def _hot(self) -> bool | None:
        host = self.host
        return host.temperature > HOT_CELSIUS if host.scenario.sensed else None

    def _on_finished(self, request: SimulatedRequest, clock: float) -> None:
        wanted, index = self.objectives, request.index
        self.estimators.answer_length.observe(request.output, request.output)
        waited = request.started - request.arrived
        self.estimators.wait_bias.observe(self._predicted_waits[index], waited)
        ttft = request.first_token - request.arrived
        tpot = (clock - request.first_token) / (request.output - 1 if request.output > 2 else 1)
        met = (
            (wanted.ttft is None or ttft <= wanted.ttft)
            and (wanted.tpot is None or tpot <= wanted.tpot)
            and (wanted.deadline is None or clock - request.arrived <= wanted.deadline)
        )
        self.outcomes[index] = Outcome(
            self._taken[index],
            met,
            self._loss[index][self._taken[index]],
            self._surprise[index][self._taken[index]],
            ttft,
            tpot,
            clock - request.arrived,
            request.output,
        )
        self.finished.append(index)


def replay(
    server: SimulatedServer, policy: Policy, use_truth: bool = False, dwell: float = DWELL_SECONDS
) -> list[Outcome]:
    """Return the outcomes of all requests under a policy, in order of arrival."""
    while server.arrive():
        decide(server, policy, use_truth, dwell)
    return [outcome for outcome in server.outcomes if outcome is not None]


def decide(
    server: SimulatedServer, policy: Policy, use_truth: bool = False, dwell: float = DWELL_SECONDS
) -> str:
    """Decide on the current request as the controller does; return the choice's name or `refuse`.

    `dwell` is in seconds.
    """
    observation = server.observation(use_truth)
    action, reason = choose_with_hysteresis(observation, policy, dwell)
    server.estimators.dwell.observe(observation, action.variant, reason)
    refused = reason in REFUSED
    server.take(None if refused else server.number_of(action))
    return REFUSE if refused else action.choice
