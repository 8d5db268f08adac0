"""Whether the server takes requests, and if not, why."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.engine.engine import Engine

DRAINING = "the server is shutting down"


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

    def trouble(self) -> str | None:
        """Return why no requests are taken now, or None if they are."""
        if self.failure is not None:
            return self.failure
        if self.draining:
            return DRAINING
        if self.stalled:
            seconds = self._engine.stalled_seconds
            return f"the engine has been busy with one step for {seconds:.1f} s"
        return None if self._engine.alive else "the engine is not running"
