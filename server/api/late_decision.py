"""The final action of a request: chosen when its prompt is read, with the queue as it is then."""

import logging
import time
from dataclasses import replace

from controller import Controller, Decision, IncomingRequest
from server.api.active_request import ActiveRequest
from server.api.request_builder import RequestBuilder
from server.engine.engine import Engine
from server.engine.late_decision import EngineAction

log = logging.getLogger(__name__)


class LateDecision:
    """Makes the final decision for all answers of one HTTP request, when the first of them starts.

    Called in the engine's thread. `incoming` is the request as it was decided on at its arrival, by
    the prompt of tokens `prompt`.
    """

    def __init__(
        self,
        active: ActiveRequest,
        incoming: IncomingRequest,
        prompt: list[int],
        engine: Engine,
        controller: Controller,
        builder: RequestBuilder,
    ) -> None:
        self._active = active
        self._incoming = incoming
        self._prompt = prompt
        self._engine = engine
        self._controller = controller
        self._builder = builder
        self._arrived = time.monotonic()

    def __call__(self) -> EngineAction:
        """Return the final action. After an error, that is the one of the arrival."""
        active = self._active
        if not active.final:
            try:
                active.decision = self._decide()
            except Exception:
                log.exception("%s keeps the action of its arrival", active.request_id)
            active.final = True
        return self._builder.engine_action(active.decision.action)

    def _decide(self) -> Decision:
        others, waited = self._engine.status(self), time.monotonic() - self._arrived
        incoming = replace(self._incoming, reusable=self._engine.reusable(self._prompt))
        return self._controller.redecide(incoming, self._active.first, others, waited)
