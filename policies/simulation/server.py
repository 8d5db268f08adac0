"""A simulated server: what a policy would be shown of each request, and how each request went."""

import math
import random
from collections.abc import Sequence

import numpy as np

from policies.candidates import (
    RequestTokens,
    VariantForecast,
    add_kv_loss,
    build_candidates,
    check_constraints,
)
from policies.estimators import RequestEstimators
from policies.estimators.dwell import DwellTracker
from policies.features import FeatureInputs, feature_vector, is_too_late
from policies.observation import HOT_CELSIUS, Action, Observation
from policies.simulation.choices import losses_by_choice, profile_actions, profile_choices
from policies.simulation.engine import SimulatedEngine
from policies.simulation.host import SimulatedHost
from policies.simulation.outcome import Outcome, are_met
from policies.simulation.profile import Profile
from policies.simulation.scenario import CurrentRequest, Scenario
from policies.simulation.simulated_request import SimulatedRequest
from policies.simulation.traffic import Arrival


class SimulatedServer:
    """One run of traffic through engine, host and estimators.

    Call `arrive` and `take` in turn until `arrive` returns False. A request is decided on when it
    arrives, which may refuse it and is otherwise an estimate, and again when its prompt is about to
    be read, which is final. One that is read at once is decided on once. `prompts` are rows of the
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
            profile.rates, self.limits, self._on_finished, self.host.spend, late=True
        )
        self.outcomes: list[Outcome | None] = [None] * len(arrivals)
        self.finished: list[int] = []  # requests since the caller last emptied it
        self._random = random.Random(scenario.seed)
        self.estimators = RequestEstimators(lambda: self.engine.clock)
        self.started = DwellTracker(lambda: self.engine.clock)  # of final decisions
        self._predicted_waits = [0.0] * len(arrivals)
        self._decided_at = [0.0] * len(arrivals)  # when they arrived, by the engine's clock
        self._ranks = [1.0] * len(arrivals)  # by size, when they arrived
        self._taken = [0] * len(arrivals)  # numbers of choices
        self._next = -1
        self.current = 0  # number of the request that is decided on
        self.choices = profile_choices(profile)
        self._actions = profile_actions(profile, self.choices)
        self.numbers = {one.action.choice: number for number, one in enumerate(self.choices)}
        self._budgets = sorted(profile.kv_loss, reverse=True)
        self._with_budgets = len(self.choices) - len(profile.pairs)
        known, tokens = profile.prompts, [arrival.prompt for arrival in arrivals]
        self._complexity = known.complexity[prompts].tolist()
        self._predicted, self._loss, self._surprise = (
            losses_by_choice(self.choices, losses[prompts], tokens).tolist()
            for losses in (known.predicted, known.loss, known.surprise)
        )

    def arrive(self) -> bool:
        """Move on to the next decision. False if there is none; then everything has ended."""
        last = self._next + 1 >= len(self._arrivals)
        until = math.inf if last else self._arrivals[self._next + 1].at
        while (starting := self.engine.advance(until)) is not None:
            if self._decided_at[starting.index] < self.engine.clock:
                self._observe_start(starting)
                return True
            # Nothing has happened since its arrival.
            self.engine.start(starting, starting.action, starting.reading, starting.cached)
        if not last:
            self._next += 1
            self._observe_arrival()
        return not last

    def _observe(self, request: CurrentRequest) -> CurrentRequest:
        """Make a request the current one, and return it with what is predicted of its work."""
        self._request, self.current = request, request.index
        self._running = self.engine.running_step()
        _, prompt, output = request.arrival
        request.expected_output = self.estimators.answer_length.expected(output)
        request.work = self._work(0, prompt, int(request.expected_output))
        return request

    def _observe_arrival(self) -> None:
        arrival, known = self._arrivals[self._next], self.estimators
        request = self._observe(CurrentRequest(arrival, self._next))
        known.observe_arrival(request.work, self.engine.idle)
        self._decided_at[self._next] = self.engine.clock
        request.wait = self.engine.predict_wait(self._running) * known.wait_bias.factor
        request.queued = self._predicted_waits[self._next] = request.wait

    def _observe_start(self, starting: SimulatedRequest) -> None:
        engine, known = self.engine, self.estimators
        arrival, factor = self._arrivals[starting.index], known.wait_bias.factor
        request = self._observe(CurrentRequest(arrival, starting.index, starting))
        request.wait = engine.predict_wait(self._running) * factor
        request.queued = engine.predict_reading(self._running) * factor + engine.clock - arrival.at

    @property
    def starting(self) -> bool:
        """Whether the current request has been accepted before and is about to be read."""
        return self._request.starting is not None

    @property
    def dwell(self) -> DwellTracker:
        """What similar requests got, at their arrival or when they started, as the current one."""
        return self.started if self.starting else self.estimators.dwell

    def take(self, action: int | None) -> None:
        """Serve the current request by a choice with the largest cache that fits; None refuses it.

        A request whose cache does not fit is refused, and so is every request once the battery is
        empty. One that starts is not refused any more: it then keeps the choice of its arrival.
        """
        request, arrival = self._request, self._request.arrival
        cached = None if action is None else self._largest_cache(action)
        starting = request.starting
        if starting is not None and (action is None or cached is None):
            action, cached = self._taken[request.index], starting.cached
        elif action is None or cached is None or (starting is None and self.host.charge == 0.0):
            self.outcomes[request.index] = Outcome(None, False)
            self.finished.append(request.index)
            return
        self._taken[request.index] = action
        variant, reading = self.choices[action].variant, self._reading(action)
        if starting is not None:
            self.engine.start(starting, variant, reading, cached)
            return
        self.engine.submit(
            SimulatedRequest(
                request.index, variant, arrival.at, arrival.prompt, arrival.output, cached,
                request.expected_output, reading,
            )
        )  # fmt: skip

    def _reading(self, number: int) -> float:
        """Return the time to read the current prompt by a choice over that in full."""
        return self.choices[number].time.share(self._request.arrival.prompt)

    def outcome(self, index: int) -> Outcome:
        """Return how a request that has ended went."""
        outcome = self.outcomes[index]
        assert outcome is not None, "it has not ended"
        return outcome

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
        late = not self.starting and is_too_late(
            self.objectives, request.wait, lambda: sizes.rank(request.work)
        )
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
            loss = losses[self.numbers[action.choice]]
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
        if request.starting is None:
            self._ranks[request.index] = known.sizes.rank(request.work)
        rank, charge = self._ranks[request.index], self.host.charge
        held, held_seconds = self.dwell.current(self.objectives, rank)
        return Observation(
            candidates=candidates,
            objectives=self.objectives,
            wait=request.wait,
            queued=request.queued if self.starting else None,
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
        engine, running, wait = self.engine, self._running, self._request.queued
        base_work, forecasts = self._work(0, *tokens), {}
        for number, choice in enumerate(self.choices):
            variant, reading = choice.variant, self._reading(number)
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
        starting = self._request.starting
        own = 0 if starting is None else starting.cached
        return self.limits.kv_tokens - self.engine.kv_promised + own

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
        index = request.index
        self.estimators.answer_length.observe(request.output, request.output)
        waited = request.started - request.arrived
        self.estimators.wait_bias.observe(self._predicted_waits[index], waited)
        ttft = request.first_token - request.arrived
        tpot = (clock - request.first_token) / (request.output - 1 if request.output > 2 else 1)
        self.outcomes[index] = Outcome(
            self._taken[index],
            are_met(self.objectives, ttft, tpot, clock - request.arrived),
            self._loss[index][self._taken[index]],
            self._surprise[index][self._taken[index]],
            ttft,
            tpot,
            clock - request.arrived,
            request.output,
        )
        self.finished.append(index)
