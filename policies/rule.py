"""The default policy: the least predicted loss that keeps the objectives, here and in the queue."""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.features import cheapest, may_refuse
from policies.hull import worth_mixing
from policies.observation import Action, Candidate, Constraint, Observation, Reason


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """When and how far answers shrink.

    Times are shares of the TTFT objective. A queue of up to `free` is none: there is room, so
    nothing is cut. A longer one is led to `target`; work is cut by `gain` for each objective's
    worth that it is off. Below `battery_low` charge (0..1) on battery, on a hot host, or if energy
    is to be saved, every answer is cut to `battery_cost`.
    """

    free: float = 0.05
    target: float = 0.25
    gain: float = 1.0
    battery_low: float = 0.3
    battery_cost: float = 0.85


class RulePolicy:
    """Degrades no more than the work that arrives and the backlog need.

    What arrives may cost `(1 + gain * (target - wait / ttft)) / demand` of the base's work on
    average, where `demand` is what arrives over what the base gets done: then the queue is short
    enough to be in time and long enough to outlast a lull. Of the variants only those take part
    that are worth mixing; of the two that the average lies between, small requests get the better
    one, because there the same work keeps the quality of more answers. Where objectives are firm,
    a request for which the queue is too long is refused, so that others are in time.
    """

    name = "rule"

    def __init__(self, settings: RuleSettings | None = None) -> None:
        self._settings = settings or RuleSettings()

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """The least loss among what the shield allows and the objectives permit."""
        base = observation.candidates[0]
        if may_refuse(observation):
            return cheapest(observation), Reason.LATE
        allowed = [c for c in observation.candidates if c.blocked is None]
        if not allowed:
            # Memory is short for all of them; the quality floor holds even so.
            kept = [c for c in observation.candidates if c.blocked is not Constraint.QUALITY_FLOOR]
            return min(kept, key=_cache_then_loss).action, Reason.LEAST_BAD
        cheap, reason = self._affordable(allowed, observation)
        if not cheap:
            return min(allowed, key=_cost_then_loss).action, Reason.LEAST_BAD
        fitting = [c for c in cheap if c.keeps(observation.objectives)]
        if not fitting:
            # An objective that nothing can keep is no reason to lose quality as well.
            return min(cheap, key=_loss).action, Reason.LEAST_BAD
        best = min(fitting, key=_loss)
        if best is base:
            return best.action, Reason.BASE_FITS
        return best.action, reason or _why_not_base(base, observation)

    def _affordable(
        self, allowed: Sequence[Candidate], observation: Observation
    ) -> tuple[Sequence[Candidate], Reason | None]:
        """What the queue and the host can afford, and which of them narrowed it down."""
        found, reason = self._for_queue(allowed, observation), None
        if len(found) < len(allowed):
            reason = Reason.QUEUE
        charge = observation.battery_charge
        low = charge is not None and charge < self._settings.battery_low
        for why, applies in (
            (Reason.ENERGY, observation.save_energy),
            (Reason.THERMAL, observation.hot),
            (Reason.BATTERY, observation.on_battery and low),
        ):
            kept = [c for c in found if c.cost <= self._settings.battery_cost]
            if applies and len(kept) < len(found):
                found, reason = kept, why
        return found, reason

    def _for_queue(
        self, allowed: Sequence[Candidate], observation: Observation
    ) -> Sequence[Candidate]:
        ttft, demand = observation.objectives.ttft, observation.demand
        if ttft is None or demand <= 0 or observation.wait <= self._settings.free * ttft:
            return allowed
        off = self._settings.target - observation.wait / ttft
        bound = (1 + self._settings.gain * off) / demand
        if bound >= 1:
            return allowed
        mixed = worth_mixing(allowed)
        below, above = [c for c in mixed if c.cost <= bound], [c for c in mixed if c.cost > bound]
        if below and above:
            share = (bound - below[-1].cost) / (above[0].cost - below[-1].cost)
            if observation.rank < share:
                return [*below, above[0]]
        return below


def _why_not_base(base: Candidate, observation: Observation) -> Reason:
    objectives = observation.objectives
    if base.blocked is not None:
        return Reason.MEMORY
    if objectives.ttft is not None and base.ttft > objectives.ttft:
        return Reason.TTFT
    if objectives.tpot is not None and base.tpot > objectives.tpot:
        return Reason.TPOT
    return Reason.DEADLINE


def _loss(candidate: Candidate) -> float:
    return float("inf") if candidate.loss is None else candidate.loss


def _cost_then_loss(candidate: Candidate) -> tuple[float, float]:
    return candidate.cost, _loss(candidate)


def _cache_then_loss(candidate: Candidate) -> tuple[float, float]:
    budget = candidate.action.kv_budget
    return float("inf") if budget is None else budget, _loss(candidate)
