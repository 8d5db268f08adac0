"""From an observation to the action that is taken: pins, the policy, and what keeps it steady."""

from policies.observation import (
    REFUSED,
    Action,
    Candidate,
    Constraint,
    Observation,
    Policy,
    Reason,
)


def choose_with_hysteresis(
    observation: Observation, policy: Policy, dwell: float
) -> tuple[Action, Reason]:
    """The action and its reason; a pure function, so that a logged decision can be replayed.

    A variant is held for `dwell` seconds after a change, unless the shield now forbids it or chance
    was asked. For a reason in `REFUSED` the request is turned away: it would only add to a queue
    that is late already, with `Reason.FLOOR` because of what its quality floor leaves.
    """
    if observation.pinned is not None:
        return observation.pinned, Reason.PINNED
    action, reason = policy.choose(observation)
    late = reason is Reason.LEAST_BAD and _too_late(observation)
    if reason is Reason.LATE or late:
        floored = any(c.blocked is Constraint.QUALITY_FLOOR for c in observation.candidates)
        if floored:
            return action, Reason.FLOOR
    if reason in REFUSED or reason is Reason.EXPLORED:
        return action, reason
    if observation.held in (None, action.variant) or observation.held_seconds >= dwell:
        return action, reason
    kept = [
        candidate
        for candidate in observation.candidates
        if candidate.action.variant == observation.held and candidate.blocked is None
    ]
    return (min(kept, key=_loss).action, Reason.DWELL) if kept else (action, reason)


def _too_late(observation: Observation) -> bool:
    """Whether the queue alone breaks the objective."""
    ttft = observation.objectives.ttft
    return ttft is not None and observation.wait > ttft


def _loss(candidate: Candidate) -> float:
    return float("inf") if candidate.loss is None else candidate.loss
