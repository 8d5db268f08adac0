"""Answers that may get narrower midway, when the host comes under pressure."""

from controller import Controller, Decision
from policies import Reason
from server.api.call import Call
from server.engine.load import LoadedModel

_PRESSURE = {
    Reason.QUEUE, Reason.TTFT, Reason.TPOT, Reason.BATTERY, Reason.THERMAL, Reason.LEAST_BAD,
}  # fmt: skip


class Narrowing:
    """Calls under way that agreed to it, by themselves or by the server's setting."""

    def __init__(self, model: LoadedModel, controller: Controller, always: bool) -> None:
        self._model = model
        self._controller = controller
        self._always = always
        self._calls: dict[int, Call] = {}

    def add(self, call: Call, agreed: bool) -> None:
        """A call that starts. Pinned ones keep what they asked for."""
        if (agreed or self._always) and call.decision.reason is not Reason.PINNED:
            self._calls[id(call)] = call

    def remove(self, call: Call) -> None:
        """A call that has ended."""
        self._calls.pop(id(call), None)

    def follow(self, decision: Decision) -> None:
        """What a newcomer has to bear, the others bear too, if their quality floor allows it."""
        if decision.reason not in _PRESSURE:
            return
        variant = self._model.variants[decision.action.variant]
        for call in self._calls.values():
            floor = call.decision.observation.objectives.max_loss
            loss = self._controller.catalogue.variant_loss.get(variant.name)
            if floor is not None and (loss is None or loss > floor):
                continue
            for generation in call.generations:
                if generation.sequence.may_narrow(variant):
                    generation.narrow(variant)
