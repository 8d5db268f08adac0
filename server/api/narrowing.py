"""Answers that may get narrower midway, when the host comes under pressure."""

from controller import Decision
from policies import Reason
from server.api.call import Call
from server.engine.loading.load import LoadedModel


class Narrowing:
    """Calls under way that agreed to it, by themselves or by the server's setting."""

    def __init__(self, model: LoadedModel, always: bool) -> None:
        self._model = model
        self._always = always
        self._calls: list[Call] = []

    def add(self, call: Call, agreed: bool) -> None:
        """A call that starts. Pinned ones keep what they asked for."""
        self._calls = [other for other in self._calls if not other.ended]
        if (agreed or self._always) and call.decision.reason is not Reason.PINNED:
            self._calls.append(call)

    def follow(self, decision: Decision) -> None:
        """What a newcomer has to bear for the host's sake, others with its objectives bear too."""
        if not _pressed(decision):
            return
        variant = self._model.variants[decision.action.variant]
        for call in self._calls:
            if call.decision.observation.objectives == decision.observation.objectives:
                for generation in call.generations:
                    if generation.sequence.may_narrow(variant):
                        generation.narrow(variant)


def _pressed(decision: Decision) -> bool:
    """Whether others, or the host itself, are why the answer is to be smaller."""
    if decision.reason is Reason.LEAST_BAD:
        return decision.observation.wait > 0
    return decision.reason in (Reason.QUEUE, Reason.BATTERY, Reason.THERMAL)
