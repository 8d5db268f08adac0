"""One variant and reader for every request: what an adaptive policy has to beat."""

from policies.features import MAX_WAIT, largest_cache
from policies.observation import Action, Observation, Reason


class StaticPolicy:
    """Always takes the same choice; with `refuses` it turns requests away that would be late.

    A choice is a variant, or a variant and a reader such as `base+read-70`.
    A request is refused if the wait exceeds `MAX_WAIT` of its TTFT objective, whatever its size, as
    other servers do it.
    """

    def __init__(self, choice: str, refuses: bool = False) -> None:
        self.name = f"{'refusing' if refuses else 'static'}:{choice}"
        self._choice, self._refuses = choice, refuses

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """Return the choice with the largest KV cache that is not blocked."""
        wanted = observation.objectives
        refuses = self._refuses and wanted.firm and not observation.accepted
        ttft = wanted.ttft if refuses else None
        late = ttft is not None and observation.wait > MAX_WAIT * ttft
        action = largest_cache(observation, self._choice).action
        return action, Reason.LATE if late else Reason.FIXED
