"""Whether the server takes work, and if not, why."""

from server.engine.engine import Engine


class Readiness:
    """What `/health` reports. `draining` is set once, when the server begins to end."""

    def __init__(self, engine: Engine, stall_seconds: float) -> None:
        self.draining = False
        self._engine = engine
        self._stall_seconds = stall_seconds

    @property
    def failure(self) -> str | None:
        """Why the engine is dead; it does not come back."""
        return self._engine.failure

    @property
    def stalled(self) -> bool:
        """Whether the engine's present step takes longer than any should."""
        return self._engine.stalled_seconds > self._stall_seconds

    def trouble(self) -> str | None:
        """Why no work is taken now; None if all is well."""
        if self.failure is not None:
            return self.failure
        if self.draining:
            return DRAINING
        if self.stalled:
            seconds = self._engine.stalled_seconds
            return f"the engine has been busy with one step for {seconds:.1f} s"
        return None if self._engine.alive else "the engine is not running"


DRAINING = "the server is shutting down"
