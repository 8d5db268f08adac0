"""Chance in the choices: what off-policy evaluation of the next policy rests on."""

from collections.abc import Callable
from dataclasses import replace

from policies.features import REFUSE, cheapest, largest_budget, may_refuse
from policies.observation import REFUSED, Action, Observation, Policy, Reason


class ExploringPolicy:
    """With probability `epsilon` any open choice, else another policy's.

    The draw is part of the observation, so that a decision can still be replayed.
    """

    def __init__(self, policy: Policy, epsilon: float) -> None:
        self.name = "random" if epsilon >= 1 else f"{policy.name}, exploring {epsilon:g}"
        self._policy, self._epsilon = policy, epsilon

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """A choice by chance is a variant with its largest open cache, or a refusal when late."""
        options = _options(observation)
        if not options or observation.draw >= self._epsilon:
            return self._policy.choose(observation)
        drawn = options[int(observation.draw / self._epsilon * len(options))]
        return (drawn, Reason.EXPLORED) if drawn else (cheapest(observation), Reason.LATE)

    def odds(self, observation: Observation, usual: str) -> dict[str, float]:
        """How often what is done, by label, where `usual` is what is done without chance."""
        options = _options(observation)
        epsilon = self._epsilon if options else 0.0
        odds = {_label(option): epsilon / len(options) for option in options}
        odds[usual] = odds.get(usual, 0.0) + 1 - epsilon
        return {label: share for label, share in odds.items() if share > 0}


Settle = Callable[[Observation], tuple[Action, Reason]]


def propensities(policy: Policy, observation: Observation, settle: Settle) -> dict[str, float]:
    """How often what is done for such a request, by the actions' labels; `refuse` is one of them.

    `settle` says what is done of what the policy chooses.
    """
    action, reason = settle(replace(observation, draw=1.0))  # leaves nothing to chance
    usual = label_of(action, reason)
    pinned = reason is Reason.PINNED
    if isinstance(policy, ExploringPolicy) and not pinned:
        return policy.odds(observation, usual)
    return {usual: 1.0}


def label_of(action: Action, reason: Reason) -> str:
    """The action's label, or `refuse`."""
    return REFUSE if reason in REFUSED else action.label


def _options(observation: Observation) -> list[Action | None]:
    variants = dict.fromkeys(c.action.variant for c in observation.candidates if c.blocked is None)
    options: list[Action | None] = [largest_budget(observation, v).action for v in variants]
    return [*options, None] if options and may_refuse(observation) else options


def _label(action: Action | None) -> str:
    return REFUSE if action is None else action.label
