"""The best mean value for a load, if work were a fluid and all requests alike.

No policy that treats all requests alike has a better mean; one that looks at their sizes may.
"""

import math
from collections.abc import Sequence

import numpy as np

from policies.simulation.choices import profile_choices
from policies.simulation.profile import Profile
from policies.simulation.traffic import Arrival

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


class QualityBounds:
    """The fluid bounds of the mean of exp(-loss) in some traffic.

    What a reader saves and loses depends on the prompts that it reads: the means over the requests
    count. For the rest, all requests are of the mean lengths.
    """

    def __init__(
        self, profile: Profile, rows: np.ndarray, traffic: Sequence[Arrival], slots: int
    ) -> None:
        """`rows` are the prompts of the profile, `slots` is the batch size."""
        prompts = [arrival.prompt for arrival in traffic]
        lengths = int(np.mean(prompts)), int(np.mean([arrival.output for arrival in traffic]))
        choices, values = profile_choices(profile), np.exp(-profile.prompts.loss[rows]).mean(0)
        work = []
        self.values: list[float] = []
        for one in choices:
            reading, kept = 1.0, 1.0
            if one.reader is not None:
                read = sum(prompt * one.time.share(prompt) for prompt in prompts)
                reading = read / max(1, sum(prompts))
                kept = float(np.exp(-one.reader.losses(prompts)).mean())
            work.append(profile.rates.work(one.variant, *lengths, slots, reading))
            self.values.append(float(values[one.variant]) * kept)
        self.costs = [seconds / work[0] for seconds in work]

    def at(self, load: float, served: float = 0.0) -> dict[str, float]:
        """Return the bounds at a load, with at least the share `served` (0..1) answered.

        A lost request counts 0 (`quality`) or -0.5 (`quality_lost_half`).
        """
        return {
            name: fluid_bound(self.costs, self.values, load, lost, served)[0]
            for name, lost in (("quality", 0.0), ("quality_lost_half", -0.5))
        }
