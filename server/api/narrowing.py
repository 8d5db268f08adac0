"""Answers that continue with a narrower variant when the host comes under pressure."""

from controller import Decision
from policies import Reason
from pruners.variant import VariantSpec
from server.api.active_request import ActiveRequest


class AnswerNarrowing:
    """Narrows the answers of requests that allow it.

    A request allows it by its `narrow` hint, or all do where `always` is set.
    """

    def __init__(self, always: bool) -> None:
        self._always = always
        self._allowing: list[ActiveRequest] = []

    def register(self, active: ActiveRequest, allowed: bool) -> None:
        """Add a request that starts. One with a pinned variant keeps that."""
        self._allowing = [other for other in self._allowing if not other.ended]
        if (allowed or self._always) and active.first.reason is not Reason.PINNED:
            self._allowing.append(active)

    def apply(self, decision: Decision, variant: VariantSpec) -> None:
        """Narrow running answers if a new request's decision shows pressure on the host.

        They get the `variant` of that decision if they have its objectives and the variant is
        nested in their own.
        """
        if not _under_pressure(decision):
            return
        for active in self._allowing:
            if active.first.observation.objectives == decision.observation.objectives:
                for generation in active.generations:
                    if generation.sequence.may_narrow(variant):
                        generation.narrow(variant)


def _under_pressure(decision: Decision) -> bool:
    """Whether a variant was chosen because of the queue or of the host's state."""
    if decision.reason is Reason.LEAST_BAD:
        return decision.observation.wait > 0
    return decision.reason in (Reason.QUEUE, Reason.BATTERY, Reason.THERMAL)
