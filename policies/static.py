"""One action for everything: the bar that an adaptive policy has to clear."""

from policies.features import largest_budget
from policies.observation import Action, Observation, Reason

_PATIENCE = 0.85  # of the objective for the first token; a longer queue is too long for anybody


class StaticPolicy:
    """Always the same variant; with `refuses`, or a 503 for what would come too late.

    Requests are refused as others do it: by the queue alone, whatever they ask for.
    """

    def __init__(self, variant: str, refuses: bool = False) -> None:
        self.name = f"{'refusing' if refuses else 'static'}:{variant}"
        self._variant, self._refuses = variant, refuses

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """The fixed variant with the largest KV budget that is not blocked."""
        wanted = observation.objectives
        ttft = wanted.ttft if self._refuses and wanted.firm else None
        late = ttft is not None and observation.wait > _PATIENCE * ttft
        action = largest_budget(observation, self._variant).action
        return action, Reason.LATE if late else Reason.FIXED
