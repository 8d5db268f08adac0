"""Requests of a simulated server, decided on by a policy as the controller does it."""

from policies.features import REFUSE
from policies.hysteresis import choose_with_hysteresis
from policies.observation import REFUSED, Policy, Reason
from policies.simulation.outcome import Outcome
from policies.simulation.server import SimulatedServer

DWELL_SECONDS = 1.0
"""The server's default."""


def replay(
    server: SimulatedServer, policy: Policy, use_truth: bool = False, dwell: float = DWELL_SECONDS
) -> list[Outcome]:
    """Return the outcomes of all requests under a policy, in order of arrival."""
    while server.arrive():
        decide(server, policy, use_truth, dwell)
    return [outcome for outcome in server.outcomes if outcome is not None]


def decide(
    server: SimulatedServer, policy: Policy, use_truth: bool = False, dwell: float = DWELL_SECONDS
) -> str:
    """Decide on the current request as the controller does; return the choice's name or `refuse`.

    `dwell` is in seconds.
    """
    observation = server.observation(use_truth)
    action, reason = choose_with_hysteresis(observation, policy, dwell)
    if server.starting and reason in REFUSED:
        reason = Reason.LEAST_BAD
    server.dwell.observe(observation, action.variant, reason)
    refused = reason in REFUSED
    server.take(None if refused else server.numbers[action.choice])
    return REFUSE if refused else action.choice
