"""From an observation to the action that is taken: pins, the policy, and what keeps it steady."""

from policies import Action, Candidate, Constraint, Observation, Policy, Reason


def settle(observation: Observation, policy: Policy, dwell: float) -> tuple[Action, Reason]:
    """The action and its reason; a pure function, so that a logged decision can be replayed.

    A variant is held for `dwell` seconds after a change, unless the shield now forbids it. With
    `Reason.FLOOR` the request should be refused: with what its quality floor leaves it would only
    add to a queue that is late already.
    """
    if observation.pinned is not None:
        return observation.pinned, Reason.PINNED
    action, reason = policy.choose(observation)
    if reason is Reason.LEAST_BAD and _too_late_for_its_floor(observation):
        return action, Reason.FLOOR
    if observation.held in (None, action.variant) or observation.held_seconds >= dwell:
        return action, reason
    kept = [
        candidate
        for candidate in observation.candidates
        if candidate.action.variant == observation.held and candidate.blocked is None
    ]
    return (min(kept, key=_loss).action, Reason.DWELL) if kept else (action, reason)


def _too_late_for_its_floor(observation: Observation) -> bool:
    """Whether the queue alone breaks the objective, and only a lower floor could shorten it."""
    objectives = observation.objectives
    if objectives.ttft is None or objectives.max_loss is None:
        return False
    floored = any(c.blocked is Constraint.QUALITY_FLOOR for c in observation.candidates)
    return floored and observation.wait > objectives.ttft


def _loss(candidate: Candidate) -> float:
    return float("inf") if candidate.loss is None else candidate.loss
