"""One variant for every request: what an adaptive policy has to beat."""

from policies.features import MAX_WAIT, largest_cache
from policies.observation import Action, Observation, Reason


class StaticPolicy:
    """Always takes the same variant; with `refuses` it turns requests away that would be late.

    A request is refused if the wait exceeds `MAX_WAIT` of its TTFT objective, whatever its size, as
    other servers do it.
    """

    def __init__(self, variant: str, refuses: bool = False) -> None:
        self.name = f"{'refusing' if refuses else 'static'}:{variant}"
        self._variant, self._refuses = variant, refuses

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """Return the variant with the largest KV cache that is not blocked."""
        wanted = observation.objectives
        ttft = wanted.ttft if self._refuses and wanted.firm else None
        late = ttft is not None and observation.wait > MAX_WAIT * ttft
        action = largest_cache(observation, self._variant).action
        return action, Reason.LATE if late else Reason.FIXED
