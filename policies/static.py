"""One action for everything: the bar that an adaptive policy has to clear."""

from policies.observation import Action, Observation, Reason


class StaticPolicy:
    """Always the same variant, or the base where the shield forbids it."""

    def __init__(self, variant: str) -> None:
        self.name = f"static:{variant}"
        self._variant = variant

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """The fixed variant with the largest KV budget that is not blocked."""
        mine = [c for c in observation.candidates if c.action.variant == self._variant]
        free = [c for c in mine if c.blocked is None]
        return (free or mine)[0].action, Reason.FIXED
