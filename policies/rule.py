"""The default policy: the least predicted loss that keeps the objectives, here and in the queue."""

from dataclasses import dataclass

from policies.observation import Action, Candidate, Constraint, Observation, Reason


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """When and how far answers shrink.

    `headroom` is the share of the TTFT objective that the queue may use up before they do. Below
    `battery_low` charge (0..1) on battery, on a hot host, or if energy is to be saved, every answer
    is cut to `battery_cost`.
    """

    headroom: float = 0.5
    battery_low: float = 0.3
    battery_cost: float = 0.85


class RulePolicy:
    """Degrades no more than the backlog needs.

    If the queue takes twice as long as the objective leaves for it, answers have to become twice as
    cheap for the queue to keep its promise; so the bound on an action's relative cost falls in
    proportion to the predicted wait, and the base returns as the queue drains.
    """

    name = "rule"

    def __init__(self, settings: RuleSettings | None = None) -> None:
        self._settings = settings or RuleSettings()

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """The least loss among what the shield allows and the objectives permit."""
        base = observation.candidates[0]
        allowed = [c for c in observation.candidates if c.blocked is None]
        if not allowed:
            # Memory is short for all of them; the quality floor holds even so.
            kept = [c for c in observation.candidates if c.blocked is not Constraint.QUALITY_FLOOR]
            return min(kept, key=_cache_then_loss).action, Reason.LEAST_BAD
        bound, reason = self._cost_bound(observation)
        cheap = [c for c in allowed if c.cost <= bound]
        if not cheap:
            return min(allowed, key=_cost_then_loss).action, Reason.LEAST_BAD
        fitting = [c for c in cheap if _in_time(c, observation)]
        if not fitting:
            # An objective that nothing can keep is no reason to lose quality as well.
            return min(cheap, key=_loss).action, Reason.LEAST_BAD
        best = min(fitting, key=_loss)
        if best is base:
            return best.action, Reason.BASE_FITS
        return best.action, reason or _why_not_base(base, observation)

    def _cost_bound(self, observation: Observation) -> tuple[float, Reason | None]:
        bound, reason = float("inf"), None
        ttft = observation.objectives.ttft
        if ttft is not None and observation.wait > self._settings.headroom * ttft:
            bound, reason = self._settings.headroom * ttft / observation.wait, Reason.QUEUE
        charge, limit = observation.battery_charge, self._settings.battery_cost
        low = charge is not None and charge < self._settings.battery_low
        for why, applies in (
            (Reason.ENERGY, observation.save_energy),
            (Reason.THERMAL, observation.hot),
            (Reason.BATTERY, observation.on_battery and low),
        ):
            if applies and limit < bound:
                bound, reason = limit, why
        return bound, reason


def _in_time(candidate: Candidate, observation: Observation) -> bool:
    objectives = observation.objectives
    late = objectives.ttft is not None and candidate.ttft > objectives.ttft
    slow = objectives.tpot is not None and candidate.tpot > objectives.tpot
    over = objectives.deadline is not None and candidate.total > objectives.deadline
    return not (late or slow or over)


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
    return candidate.action.kv_budget or float("inf"), _loss(candidate)
