"""What is feasible now. A blocked action keeps its constraint's name, so that it can be counted."""

from collections.abc import Callable
from dataclasses import dataclass

from controller.engine_status import EngineStatus
from policies import Constraint
from telemetry import Snapshot


@dataclass(frozen=True, slots=True)
class ShieldSettings:
    """Below `memory_low` (available over total host memory) answers get at most `low_memory_kv`
    cached tokens."""

    memory_low: float = 0.08
    low_memory_kv: int = 512


class Shield:
    """Checks actions against memory and the request's quality floor."""

    def __init__(
        self,
        settings: ShieldSettings,
        load: EngineStatus,
        snapshot: Snapshot,
        expected: Callable[[int], float],
    ) -> None:
        self._settings = settings
        # What runs and waits will grow; only the rest of the cache is free for a newcomer.
        promised = sum(
            min(s.cache_limit, s.cached + s.prompt_left + int(expected(s.output_most)))
            for s in load.sequences
        )
        self._kv_free = max(load.kv_capacity - max(promised, load.kv_used), 0)
        total = snapshot.memory_total_bytes.value
        available = snapshot.memory_available_bytes.value
        self._memory = available / total if total and available is not None else None

    def blocked(
        self, kv_tokens: int, loss: float | None, max_loss: float | None
    ) -> Constraint | None:
        """The constraint that forbids a cache of `kv_tokens` or a predicted `loss`, or None."""
        if max_loss is not None and loss != 0.0 and (loss is None or loss > max_loss):
            return Constraint.QUALITY_FLOOR
        if kv_tokens > self._kv_free:
            return Constraint.KV_MEMORY
        low = self._memory is not None and self._memory < self._settings.memory_low
        if low and kv_tokens > self._settings.low_memory_kv:
            return Constraint.HOST_MEMORY
        return None
