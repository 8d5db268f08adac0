"""The default policy: the least predicted loss that keeps the objectives, here and in the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from policies.features import cheapest_action, may_refuse
from policies.hull import best_yield, concave_hull
from policies.observation import (
    Action,
    Candidate,
    Constraint,
    Observation,
    Reason,
    loss_or_infinity,
)


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """When smaller variants are used, and how small they are.

    Waits are shares of the TTFT objective. Up to a wait of `free` nothing is cut. A longer queue is
    steered to `target` by a proportional controller of gain `gain`. On battery below the charge
    `battery_low` (0..1), on a hot host, or to save energy, a request may cost `battery_cost` of its
    cost by the base. At most `refused` of the arriving work is turned away because it is large.
    """

    free: float = 0.05
    target: float = 0.25
    gain: float = 1.0
    refused: float = 0.1
    battery_low: float = 0.3
    battery_cost: float = 0.85


class RulePolicy:
    """Degrades answers no more than arriving work and queue require.

    What keeps the reading tasks goes first: anything else, such as a reader that overlooks
    passkeys, is used only where nothing that keeps them is in time and cheap enough.

    The mean cost of requests may be `(1 + gain * (target - wait / ttft)) / load`, relative to the
    base. The target queue is short enough for requests to be in time, and long enough to keep the
    machine busy. Only variants on the concave hull are used. Of the two around the mean cost, small
    requests get the better one: the same work keeps the quality of more answers there.

    Where TTFT objectives are firm, a request behind too long a queue is refused, so that others are
    in time. Below the cost of the action of the best yield, every further cut loses more than
    refusing as much work. The largest requests are then refused, up to a share of the work: these
    are few, and the rest may cost more. Beyond that share all are cut, so that they are in time.
    """

    name = "rule"

    def __init__(self, settings: RuleSettings | None = None) -> None:
        self._settings = settings or RuleSettings()

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """Return the action of least loss that shield, queue, host and objectives allow."""
        base = observation.candidates[0]
        if may_refuse(observation):
            return cheapest_action(observation), Reason.LATE
        allowed = [c for c in observation.candidates if c.blocked is None]
        if not allowed:
            # Memory is too short for all of them. The quality floor is kept even so.
            over_floor = [
                c for c in observation.candidates if c.blocked is not Constraint.QUALITY_FLOOR
            ]
            return min(over_floor, key=_cache_then_loss).action, Reason.LEAST_BAD
        room = self._room_in_queue(allowed, observation)
        if room is not None and room.rank > 1 and not observation.accepted:
            return cheapest_action(observation), Reason.LATE
        fallback: Sequence[Candidate] = ()
        for group in _by_tasks(allowed):
            affordable, reason = self._affordable(group, room, observation)
            in_time = [c for c in affordable if c.keeps(observation.objectives)]
            if in_time:
                best = min(in_time, key=loss_or_infinity)
                if best is base:
                    return best.action, Reason.BASE_FITS
                return best.action, reason or _why_not_base(base, observation)
            fallback = fallback or affordable
        if not fallback:
            return min(allowed, key=_cost_then_loss).action, Reason.LEAST_BAD
        # An objective that no action can keep is no reason to lose quality as well.
        return min(fallback, key=loss_or_infinity).action, Reason.LEAST_BAD

    def _affordable(
        self, allowed: Sequence[Candidate], room: "_Room | None", observation: Observation
    ) -> tuple[Sequence[Candidate], Reason | None]:
        """Return what queue and host can afford, and what excluded the others last, if any."""
        affordable, reason = allowed if room is None else room.affordable(allowed), None
        if len(affordable) < len(allowed):
            reason = Reason.QUEUE
        charge = observation.battery_charge
        low = charge is not None and charge < self._settings.battery_low
        for cause, applies in (
            (Reason.ENERGY, observation.save_energy),
            (Reason.THERMAL, observation.hot),
            (Reason.BATTERY, observation.on_battery and low),
        ):
            cheap = [c for c in affordable if c.cost <= self._settings.battery_cost]
            if applies and len(cheap) < len(affordable):
                affordable, reason = cheap, cause
        return affordable, reason

    def _room_in_queue(
        self, allowed: Sequence[Candidate], observation: Observation
    ) -> "_Room | None":
        """Return what requests may cost; None where all of them may cost as much as by the base."""
        ttft, load = observation.objectives.ttft, observation.demand
        if ttft is None or load <= 0 or observation.wait <= self._settings.free * ttft:
            return None
        error = self._settings.target - observation.wait / ttft
        mean_cost = (1 + self._settings.gain * error) / load
        if mean_cost >= 1:
            return None
        served = 1.0
        if observation.objectives.firm:
            worthwhile = max(best_yield(allowed).cost, 1e-9)
            served = max(1 - self._settings.refused, min(1.0, mean_cost / worthwhile))
        return _Room(mean_cost / served, observation.rank / served)


class _Room(NamedTuple):
    """The mean cost that served requests may have, over the base, and a request's rank among them.

    The rank is the share of the served work that is in smaller requests; that of a request which is
    too large to be served is above 1.
    """

    mean_cost: float
    rank: float

    def affordable(self, allowed: Sequence[Candidate]) -> Sequence[Candidate]:
        """Return the candidates on the concave hull that the request may get."""
        if self.mean_cost >= 1:
            return allowed
        hull = concave_hull(allowed)
        below = [c for c in hull if c.cost <= self.mean_cost]
        above = [c for c in hull if c.cost > self.mean_cost]
        if below and above:
            share = (self.mean_cost - below[-1].cost) / (above[0].cost - below[-1].cost)
            if self.rank < share:
                return [*below, above[0]]
        return below


def _by_tasks(allowed: Sequence[Candidate]) -> list[Sequence[Candidate]]:
    """Return what is tried in turn: the candidates that keep the reading tasks, then all."""
    keeping = [c for c in allowed if c.keeps_tasks]
    return [keeping, allowed] if 0 < len(keeping) < len(allowed) else [allowed]


def _why_not_base(base: Candidate, observation: Observation) -> Reason:
    objectives = observation.objectives
    if base.blocked is not None:
        return Reason.MEMORY
    if objectives.ttft is not None and base.ttft > objectives.ttft:
        return Reason.TTFT
    if objectives.tpot is not None and base.tpot > objectives.tpot:
        return Reason.TPOT
    return Reason.DEADLINE


def _cost_then_loss(candidate: Candidate) -> tuple[float, float]:
    return candidate.cost, loss_or_infinity(candidate)


def _cache_then_loss(candidate: Candidate) -> tuple[float, float]:
    budget = candidate.action.kv_budget
    return float("inf") if budget is None else budget, loss_or_infinity(candidate)
