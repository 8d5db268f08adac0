"""What is feasible now: the check that blocks actions before a policy chooses."""

from collections.abc import Callable
from dataclasses import dataclass

from controller.engine_status import EngineStatus
from policies import Constraint
from policies.candidates import check_constraints
from telemetry import Snapshot


@dataclass(frozen=True, slots=True)
class ShieldSettings:
    """When the host is short of memory, and what is allowed then.

    Below the share `memory_low` (0..1) of available memory, an answer may have at most
    `low_memory_kv` cached tokens.
    """

    memory_low: float = 0.08
    low_memory_kv: int = 512


class Shield:
    """Checks actions of one request against memory and the request's quality floor."""

    def __init__(
        self,
        settings: ShieldSettings,
        status: EngineStatus,
        snapshot: Snapshot,
        expected_output: Callable[[int], float],
        max_loss: float | None,
    ) -> None:
        """`expected_output` returns the expected tokens of an answer from its `max_tokens`.

        `max_loss` is the request's quality floor, in nats per token; None for none.
        """
        self._settings = settings
        self._max_loss = max_loss
        # The caches of running and waiting requests will grow; only the rest is free.
        promised = sum(
            min(s.cache_limit, s.cached + s.prompt_left + int(expected_output(s.output_most)))
            for s in status.sequences
        )
        self._kv_free = max(status.kv_capacity - max(promised, status.kv_used), 0)
        total = snapshot.memory_total_bytes.value
        available = snapshot.memory_available_bytes.value
        self._memory = available / total if total and available is not None else None

    def blocked_by(self, kv_tokens: int, loss: float | None) -> Constraint | None:
        """Return the constraint that forbids a cache of `kv_tokens` or a predicted loss; or None.

        `loss` is in nats per token.
        """
        constraint = check_constraints(kv_tokens, self._kv_free, loss, self._max_loss)
        if constraint is not None:
            return constraint
        low = self._memory is not None and self._memory < self._settings.memory_low
        if low and kv_tokens > self._settings.low_memory_kv:
            return Constraint.HOST_MEMORY
        return None
