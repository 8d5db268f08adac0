"""Requests meet the simulated engine: what a policy would see of each, and how each went."""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from policies.estimators.dwell import DwellTracker
from policies.estimators.load import (
    AnswerLengthEstimator,
    LoadEstimator,
    RequestSizes,
    WaitBiasEstimator,
)
from policies.features import CLIP, DEFAULT_TPOT, DEFAULT_TTFT, LARGEST, REFUSE, pack, patience
from policies.hysteresis import choose_with_hysteresis
from policies.observation import (
    HOT_CELSIUS,
    REFUSED,
    Action,
    Candidate,
    Constraint,
    Objectives,
    Observation,
    Policy,
)
from policies.simulation.engine import EngineLimits, SimulatedEngine, SimulatedRequest
from policies.simulation.host import MAINS, HostScenario, SimulatedHost
from policies.simulation.profile import Profile
from policies.simulation.traffic import Arrival

DWELL = 1.0
"""Seconds that a variant is kept after a change; the server's default."""


class Outcome(NamedTuple):
    """How one request went; `action` None: refused, or lost with the battery. Seconds and nats.

    `loss` is what the profile measured of its variant on its prompt, `surprise` the variant's own
    loss there; `met` says whether all objectives were kept.
    """

    action: int | None
    met: bool
    loss: float = 0.0
    surprise: float = 0.0
    ttft: float = math.inf
    tpot: float = math.inf
    seconds: float = math.inf
    output: int = 0

    @property
    def quality(self) -> float:
        """What is left of the base's quality, exp(-loss), if the objectives were kept; else 0."""
        return math.exp(-self.loss) if self.met else 0.0


class SimulatedServer:
    """One run of traffic. Go through it with `arrive` and `take`, in turn, until `arrive` is False.

    `prompts` are rows of the profile, one for each arrival. The dwell and the rest of what settles
    a decision is `replay`'s business.
    """

    def __init__(
        self,
        profile: Profile,
        arrivals: Sequence[Arrival],
        prompts: Sequence[int],
        objectives: Objectives,
        limits: EngineLimits | None = None,
        host: HostScenario = MAINS,
        seed: int = 0,
    ) -> None:
        self.profile, self.objectives = profile, objectives
        self.limits = limits or EngineLimits()
        self._arrivals = arrivals
        self.host = SimulatedHost(host)
        self.engine = SimulatedEngine(profile.rates, self.limits, self._ended, self.host.work)
        self.outcomes: list[Outcome | None] = [None] * len(arrivals)
        self.finished: list[int] = []  # since somebody last emptied it
        self._chance = random.Random(seed)
        self._length = AnswerLengthEstimator()
        self._demand, self._sizes, self._bias = LoadEstimator(), RequestSizes(), WaitBiasEstimator()
        self._waits = [0.0] * len(arrivals)  # as predicted
        self.held = DwellTracker(lambda: self.engine.clock)
        self._next = -1
        columns = profile.prompts.lists
        self._predicted, self._complexity, self._loss, self._surprise = (
            [columns[name][row] for row in prompts]
            for name in ("predicted", "complexity", "loss", "surprise")
        )
        self._budgets: tuple[int | None, ...] = (None, *sorted(profile.kv_loss, reverse=True))

    def arrive(self) -> bool:
        """Moves on to the next arrival; False when there is none, and everything has ended."""
        self._next += 1
        if self._next >= len(self._arrivals):
            self.engine.finish()
            return False
        arrival = self._arrivals[self._next]
        self.engine.advance(arrival.at)
        self._output = self._length.expected(arrival.output)
        self._size = self._work(0, arrival.prompt, int(self._output))
        self._demand.add(self.engine.clock, self._size, idle=self.engine.idle)
        self._sizes.add(self._size)
        self._wait = self.engine.wait() * self._bias.factor
        self._waits[self._next] = self._wait
        return True

    def take(self, action: int | None) -> None:
        """Serves the request that arrived by a variant, with the largest cache that fits; or not.

        What does not fit is refused, and so is everything once the battery is empty.
        """
        arrival, index = self._arrivals[self._next], self._next
        cached = None if action is None else self._fits(arrival)
        if action is None or cached is None or self.host.charge == 0.0:
            self.outcomes[index] = Outcome(None, False)
            self.finished.append(index)
            return
        self.engine.submit(
            SimulatedRequest(
                index, action, arrival.at, arrival.prompt, arrival.output, cached, self._output
            )
        )

    def outcome(self, index: int) -> Outcome:
        """Of a request that has ended."""
        found = self.outcomes[index]
        assert found is not None, "it has not ended"
        return found

    def vector(self) -> np.ndarray:
        """What a learned policy reads of the request that arrived; see `policies.features`."""
        arrival, rates = self._arrivals[self._next], self.profile.rates
        wanted = self.objectives
        ttft = DEFAULT_TTFT if wanted.ttft is None else wanted.ttft
        tpot = DEFAULT_TPOT if wanted.tpot is None else wanted.tpot
        prefill = rates.stream[0] + arrival.prompt * rates.prompt[0]
        charge, hot = self.host.charge, self._hot()
        return pack(
            self._wait / ttft,
            self._demand.value,
            prefill / ttft,
            self._tpot(0, arrival) / tpot,
            self._complexity[self._next],
            (
                0.0 if charge is None else charge,
                float(charge is None),
                float(charge is not None),
                float(bool(hot)),
                float(hot is None),
                0.0,
            ),
            [loss if loss < CLIP else CLIP for loss in self._predicted[self._next]],
        )

    def mask(self) -> np.ndarray:
        """`[choices]` of bool, as `policies.features.open_choices`."""
        fits = self._fits(self._arrivals[self._next]) is not None
        wanted = self.objectives
        ttft, late = wanted.ttft, False
        if wanted.firm and ttft is not None and self._wait > LARGEST * ttft:
            late = self._wait > patience(self._sizes.rank(self._size)) * ttft
        return np.array([fits] * len(self.profile.variants) + [late])

    def observation(self, truth: bool = False) -> Observation:
        """As the server's policies are shown it; with `truth`, losses are the measured ones."""
        profile, arrival = self.profile, self._arrivals[self._next]
        rates = profile.rates
        losses = (self._loss if truth else self._predicted)[self._next]
        output = arrival.output if truth else int(self._output)
        whole = self._work(0, arrival.prompt, output)
        candidates = []
        for action, name in enumerate(profile.variants):
            cost = self._work(action, arrival.prompt, output) / whole
            ttft = self._wait + rates.stream[action] + arrival.prompt * rates.prompt[action]
            tpot = self._tpot(action, arrival)
            for budget in self._budgets:
                tokens = arrival.prompt + output
                within = budget is None or tokens <= budget
                loss = losses[action] + (0.0 if within else profile.kv_loss[budget or 0])
                held = tokens if budget is None else min(tokens, budget)
                candidates.append(
                    Candidate(
                        Action(name, budget), loss, cost, ttft, tpot,
                        self._blocked(held, loss), ttft + tpot * output,
                    )
                )  # fmt: skip
        rank = self._sizes.rank(self._size)
        charge, (kept, seconds) = self.host.charge, self.held.by(self.objectives, rank)
        return Observation(
            candidates=tuple(candidates),
            objectives=self.objectives,
            wait=self._wait,
            complexity=self._complexity[self._next],
            on_battery=None if charge is None else True,
            battery_charge=charge,
            hot=self._hot(),
            held=kept,
            held_seconds=seconds,
            demand=self._demand.value,
            rank=rank,
            draw=self._chance.random(),
        )

    def _work(self, action: int, prompt: int, output: int) -> float:
        return self.profile.rates.work(action, prompt, output, self.limits.max_running)

    def _blocked(self, held: int, loss: float) -> Constraint | None:
        floor = self.objectives.max_loss
        if floor is not None and loss > floor:
            return Constraint.QUALITY_FLOOR
        free = self.limits.kv_tokens - self.engine.kv_promised
        return None if held <= free else Constraint.KV_MEMORY

    def _fits(self, arrival: Arrival) -> int | None:
        """Tokens of the largest cache that there is room for."""
        tokens = arrival.prompt + arrival.output
        free = self.limits.kv_tokens - self.engine.kv_promised
        for budget in self._budgets:
            held = tokens if budget is None else min(tokens, budget)
            if held <= free:
                return held
        return None

    def _tpot(self, action: int, arrival: Arrival) -> float:
        cached = arrival.prompt + self._output
        return self.engine.decode_step(action) + cached * self.profile.rates.cached[action]

    def _hot(self) -> bool | None:
        host = self.host
        return host.temperature > HOT_CELSIUS if host.scenario.sensed else None

    def _ended(self, row: SimulatedRequest, clock: float) -> None:
        wanted, index = self.objectives, row.index
        self._length.learn(row.output, row.output)
        self._bias.learn(self._waits[index], row.started - row.arrived)
        ttft = row.first - row.arrived
        tpot = (clock - row.first) / (row.output - 1 if row.output > 2 else 1)
        met = (
            (wanted.ttft is None or ttft <= wanted.ttft)
            and (wanted.tpot is None or tpot <= wanted.tpot)
            and (wanted.deadline is None or clock - row.arrived <= wanted.deadline)
        )
        self.outcomes[index] = Outcome(
            row.action,
            met,
            self._loss[index][row.action],
            self._surprise[index][row.action],
            ttft,
            tpot,
            clock - row.arrived,
            row.output,
        )
        self.finished.append(index)


def replay(
    world: SimulatedServer, policy: Policy, truth: bool = False, dwell: float = DWELL
) -> list[Outcome]:
    """All outcomes of a policy, in order of arrival, its decisions settled as a server does."""
    while world.arrive():
        decided(world, policy, truth, dwell)
    return [outcome for outcome in world.outcomes if outcome is not None]


def decided(
    world: SimulatedServer, policy: Policy, truth: bool = False, dwell: float = DWELL
) -> str:
    """Takes what a policy decides for the request at hand; the variant's name, or `refuse`."""
    seen = world.observation(truth)
    action, reason = choose_with_hysteresis(seen, policy, dwell)
    world.held.note(seen, action.variant, reason)
    refused = reason in REFUSED
    world.take(None if refused else world.profile.variants.index(action.variant))
    return REFUSE if refused else action.variant
