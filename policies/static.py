"""One action for everything: the bar that an adaptive policy has to clear."""

from policies.observation import Action, Observation, Reason
from policies.view import largest_budget, may_refuse


class StaticPolicy:
    """Always the same variant; with `refuses`, or a 503 for what would come too late."""

    def __init__(self, variant: str, refuses: bool = False) -> None:
        self.name = f"{'refusing' if refuses else 'static'}:{variant}"
        self._variant, self._refuses = variant, refuses

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """The fixed variant with the largest KV budget that is not blocked."""
        late = self._refuses and may_refuse(observation)
        action = largest_budget(observation, self._variant).action
        return action, Reason.LATE if late else Reason.FIXED
