"""The same traffic through the simulation."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np

from policies import Objectives
from policies.simulation.profile import Profile
from policies.simulation.traffic import Arrival
from policies.simulation.world import World, replay
from server.policy_names import named_policy
from server.settings import SettingsError


def simulate(
    profile: Profile,
    repeats: Sequence[Sequence[Arrival]],
    policy: str,
    ttft: float,
    tpot: float,
    total: float,
) -> dict[str, float] | None:
    """Means over the repeats, as `benchmarks.replay` measures them; None for another's server."""
    try:
        chosen = named_policy(policy, profile.variants, profile.fingerprint, force=True)
    except SettingsError:
        return None
    found: dict[str, list[float]] = {"ttft_mean": [], "tokens_per_second": [], "attained": []}
    # The server knows of the first objective alone.
    for number, arrivals in enumerate(repeats):
        count = len(profile.prompts.names)
        rows = np.random.default_rng(number).integers(count, size=len(arrivals)).tolist()
        world = World(profile, arrivals, rows, Objectives(ttft=ttft, firm=True), seed=number)
        outcomes = replay(world, chosen)
        served = [(a, o) for a, o in zip(arrivals, outcomes, strict=True) if o.action is not None]
        met = [o.ttft <= ttft and o.tpot <= tpot and o.seconds <= total for _, o in served]
        end = max(a.at + o.seconds for a, o in served)
        found["ttft_mean"].append(fmean(o.ttft for _, o in served))
        found["tokens_per_second"].append(sum(o.output for _, o in served) / end)
        found["attained"].append(sum(met) / len(arrivals))
    return {name: fmean(values) for name, values in found.items()}
