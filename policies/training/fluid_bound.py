"""The best mean value for a load, if work were a fluid and all requests alike.

No policy that treats all requests alike has a better mean; one that looks at their sizes may.
"""

import math
from collections.abc import Sequence

import numpy as np

from policies.simulation.profile import Profile

Mix = dict[int | None, float]
"""Shares of requests by the number of their choice; None is refused."""
_Point = tuple[int | None, float, float]
"""A choice, its cost and its value."""


def fluid_bound(
    costs: Sequence[float], values: Sequence[float], load: float, lost: float, served: float = 0.0
) -> tuple[float, Mix]:
    """Return the best mean value of a request, and the mix of choices that has it.

    `costs` of the choices are relative to the base, `values` are their mean values. A request that
    is not served costs nothing and is worth `lost`. At `load` times what the base can serve, the
    mean cost may be 1 / load. At least the share `served` (0..1) is answered, as far as the
    cheapest choice allows.
    """
    budget = 1.0 / load
    points: list[_Point] = [(i, c, v) for i, (c, v) in enumerate(zip(costs, values, strict=True))]
    best, mix = _best_mix([(None, 0.0, lost), *points], budget)
    served = min(served, budget / min(costs))
    if 1 - mix.get(None, 0.0) >= served:
        return best, mix
    # The value is concave in the share served, so that exactly the required share is served.
    best, mix = _best_mix(points, budget / served)
    shares: Mix = {None: 1 - served, **{one: served * share for one, share in mix.items()}}
    return served * best + (1 - served) * lost, shares


def _best_mix(points: Sequence[_Point], budget: float) -> tuple[float, Mix]:
    """Solve the linear programme. With one resource the optimum mixes at most two choices."""
    best, mix = -math.inf, {}
    for one, cost, value in points:
        if cost <= budget and value > best:
            best, mix = value, {one: 1.0}
        for other, higher_cost, other_value in points:
            if cost <= budget < higher_cost:
                share = (budget - cost) / (higher_cost - cost)
                mean = share * other_value + (1 - share) * value
                if mean > best:
                    best, mix = mean, {one: 1 - share, other: share}
    return best, mix


def quality_bounds(
    profile: Profile,
    rows: np.ndarray,
    lengths: tuple[int, int],
    load: float,
    slots: int,
    served: float = 0.0,
) -> dict[str, float]:
    """Return the fluid bounds of the mean of exp(-loss) over the prompts in `rows` of the profile.

    A lost request counts 0 (`quality`) or -0.5 (`quality_lost_half`). `lengths` are the mean tokens
    of prompt and answer, `slots` is the batch size, `served` the share of requests to answer.
    """
    variants = range(len(profile.variants))
    work = [profile.rates.work(variant, *lengths, slots) for variant in variants]
    costs = [seconds / work[0] for seconds in work]
    values = np.exp(-profile.prompts.loss[rows]).mean(0).tolist()
    return {
        name: fluid_bound(costs, values, load, lost, served)[0]
        for name, lost in (("quality", 0.0), ("quality_lost_half", -0.5))
    }
