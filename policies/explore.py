"""Random choices, without which a log says nothing about what another policy would have done."""

from collections.abc import Callable
from dataclasses import replace

from policies.features import REFUSE, cheapest_action, largest_cache, may_refuse
from policies.observation import REFUSED, Action, Observation, Policy, Reason

ChooseFunction = Callable[[Observation], tuple[Action, Reason]]


class ExploringPolicy:
    """Takes a random open choice with probability `epsilon`, else that of another policy.

    The random number is part of the observation, so that a decision can be replayed.
    """

    def __init__(self, policy: Policy, epsilon: float) -> None:
        self.name = "random" if epsilon >= 1 else f"{policy.name}, exploring {epsilon:g}"
        self._policy, self._epsilon = policy, epsilon

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """Return an action and the reason. A random choice is a variant and a reader with the
        largest cache that is not blocked or, for a request that is too late, a refusal."""
        options = _random_options(observation)
        if not options or observation.draw >= self._epsilon:
            return self._policy.choose(observation)
        drawn = options[int(observation.draw / self._epsilon * len(options))]
        return (drawn, Reason.EXPLORED) if drawn else (cheapest_action(observation), Reason.LATE)

    def probabilities(self, observation: Observation, usual: str) -> dict[str, float]:
        """Return the probability of each choice by label.

        `usual` is the label of what is done without a random choice.
        """
        options = _random_options(observation)
        epsilon = self._epsilon if options else 0.0
        shares = {REFUSE if o is None else o.label: epsilon / len(options) for o in options}
        shares[usual] = shares.get(usual, 0.0) + 1 - epsilon
        return {label: share for label, share in shares.items() if share > 0}


def propensities(
    policy: Policy, observation: Observation, choose: ChooseFunction
) -> dict[str, float]:
    """Return the probability of each choice for such a request, by label (`refuse` is one).

    `choose` turns what the policy says into what is done, with pins and hysteresis.
    """
    action, reason = choose(replace(observation, draw=1.0))  # such a draw never explores
    usual = choice_label(action, reason)
    if isinstance(policy, ExploringPolicy) and reason is not Reason.PINNED:
        return policy.probabilities(observation, usual)
    return {usual: 1.0}


def choice_label(action: Action, reason: Reason) -> str:
    """Return the action's label, or `refuse` if the reason is a refusal."""
    return REFUSE if reason in REFUSED else action.label


def _random_options(observation: Observation) -> list[Action | None]:
    """Return what a random choice is drawn from, with equal chances; None is a refusal."""
    choices = dict.fromkeys(c.action.choice for c in observation.candidates if c.blocked is None)
    options: list[Action | None] = [largest_cache(observation, c).action for c in choices]
    return [*options, None] if options and may_refuse(observation) else options
