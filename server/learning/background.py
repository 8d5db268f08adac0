"""Learning as a part of the server: whether there is anything to learn, and who sees to it."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace

from policies.registry import is_trained
from server.engine.loading.artefact_lookup import kept_folder
from server.engine.loading.load import LoadedModel
from server.learning.conditions import HostState
from server.learning.offer import LiveOffer, RunningServer
from server.learning.order import WorkerOrder
from server.learning.plan import STAGES, finished, precision_for
from server.learning.supervisor import LearningPlan, LearningStatus, State, Supervisor
from server.settings import Settings
from telemetry import Snapshot

GIVEN = "the artefact is given by a setting"
SHIPPED = "the artefact comes with the package"
TRAINED = "a trained policy chooses among the actions that it was trained on, and no others"


class BackgroundLearning:
    """What a server learns in the background. `note_request` may be called by any thread."""

    def __init__(self, model: LoadedModel, settings: Settings) -> None:
        self._order = WorkerOrder(
            model=settings.model,
            name=model.name,
            fingerprint=model.fingerprint,
            target=str(kept_folder(model.fingerprint)),
            server=os.getpid(),
            threads=settings.threads,
        )
        self._done = finished(model.artefact)
        self._mode = settings.learn
        self._why_not = _why_not(model, settings)
        self._supervisor: Supervisor | None = None

    def start(self, server: RunningServer, snapshot: Callable[[], Snapshot]) -> None:
        """Start in the running event loop, if there is anything to learn."""
        if self._mode == "off" or self._why_not:
            return
        offer, shape = LiveOffer(server, asyncio.get_running_loop()), server.model.weights.shape
        precision = precision_for(shape, snapshot().memory_total_bytes.value)
        order = replace(self._order, precision=precision)
        plan = LearningPlan(order, shape, self._done, offer)
        host = HostState(lambda: server.engine.open_requests, snapshot)
        self._supervisor = Supervisor(plan, self._mode, host)
        self._supervisor.start()

    def note_request(self) -> None:
        """Stop the worker at once, since a request has come."""
        if self._supervisor is not None:
            self._supervisor.note_request()

    def status(self) -> LearningStatus:
        """Return how far it is."""
        if self._supervisor is not None:
            return self._supervisor.status()
        complete = self._mode != "off" and len(self._done) == len(STAGES)
        state: State = "complete" if complete else "off"
        return LearningStatus(self._mode, state, self._why_not, done=self._done)

    async def stop(self) -> None:
        """End the worker. What it has finished stays."""
        if self._supervisor is not None:
            await asyncio.to_thread(self._supervisor.stop)


def _why_not(model: LoadedModel, settings: Settings) -> str:
    """Return why nothing is learned, "" if there is no reason."""
    if settings.artefact is not None:
        return GIVEN
    if model.artefact is not None and model.artefact_folder != kept_folder(model.fingerprint):
        return SHIPPED
    if is_trained(settings.policy):
        return TRAINED
    return ""
