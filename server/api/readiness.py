"""Whether the server takes requests, and if not, why."""

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.engine.engine import Engine

DRAINING = "the server is shutting down"


class ServerState(StrEnum):
    """What `/health` calls the state of the server; `loading` comes before there is an engine."""

    READY = "ready"
    DRAINING = "draining"  # it ends what runs, and takes nothing new
    STALLED = "stalled"  # one step takes far too long
    RESTARTING = "restarting"  # the engine broke, and is about to start again
    FAILED = "failed"  # the engine broke for good; the process ends


class Readiness:
    """What `/health` reports. `draining` is set when the shutdown begins.

    `stall_seconds` returns how long a step may take before the engine counts as hanging.
    """

    def __init__(self, engine: "Engine", stall_seconds: Callable[[], float]) -> None:
        self.draining = False
        self._engine = engine
        self._stall_seconds = stall_seconds

    @property
    def failure(self) -> str | None:
        """Why the engine is dead, which is final; None while it is not."""
        return self._engine.failure

    @property
    def stalled(self) -> bool:
        """Whether the engine's current step takes longer than any should."""
        return self._engine.stalled_seconds > self._stall_seconds()

    @property
    def state(self) -> ServerState:
        """The state of the server now."""
        return self._found()[0]

    def trouble(self) -> str | None:
        """Return why no requests are taken now, or None if they are."""
        return self._found()[1]

    def _found(self) -> tuple[ServerState, str | None]:
        if self.failure is not None:
            return ServerState.FAILED, self.failure
        if self.draining:
            return ServerState.DRAINING, DRAINING
        if self._engine.restarting:
            return ServerState.RESTARTING, "the engine broke and starts again"
        if self.stalled:
            seconds = self._engine.stalled_seconds
            what = f"the engine has been busy with one step for {seconds:.1f} s"
            return ServerState.STALLED, what
        if not self._engine.alive:
            return ServerState.FAILED, "the engine is not running"
        return ServerState.READY, None
