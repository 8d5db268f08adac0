"""From an observation to the action that is taken: pins, the policy, and the dwell time."""

from policies.observation import (
    REFUSED,
    Action,
    Constraint,
    Observation,
    Policy,
    Reason,
    loss_or_infinity,
)


def choose_with_hysteresis(
    observation: Observation, policy: Policy, dwell: float
) -> tuple[Action, Reason]:
    """Return the action that is taken and its reason.

    A pure function, so that a logged decision can be replayed. A pinned action is taken as it is.
    After a change of variant, the new one stays for `dwell` seconds, unless the shield blocks it or
    the choice was random. Readers may change from one request to the next, since they give answers
    no style of their own; a variant that stays reads as the policy would, where it can. If the
    reason is in `REFUSED`, the request is turned away: it would only make a queue longer that is
    too long already. The reason is then `Reason.FLOOR` if the request's quality floor blocks
    smaller variants.
    """
    if observation.pinned is not None:
        return observation.pinned, Reason.PINNED
    action, reason = policy.choose(observation)
    late = reason is Reason.LATE or (reason is Reason.LEAST_BAD and _wait_exceeds_ttft(observation))
    if late and any(c.blocked is Constraint.QUALITY_FLOOR for c in observation.candidates):
        return action, Reason.FLOOR
    if reason in REFUSED or reason is Reason.EXPLORED:
        return action, reason
    if observation.held in (None, action.variant) or observation.held_seconds >= dwell:
        return action, reason
    same_variant = [
        candidate
        for candidate in observation.candidates
        if candidate.action.variant == observation.held and candidate.blocked is None
    ]
    if not same_variant:
        return action, reason
    same_reader = [c for c in same_variant if c.action.reader == action.reader]
    return min(same_reader or same_variant, key=loss_or_infinity).action, Reason.DWELL


def _wait_exceeds_ttft(observation: Observation) -> bool:
    ttft = observation.objectives.ttft
    return ttft is not None and observation.wait > ttft
