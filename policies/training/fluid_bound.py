"""The best mix for a load, as if work were a fluid and all requests alike.

No policy that treats requests alike does better on average; one that looks at their sizes may.
"""

import math
from collections.abc import Sequence

import numpy as np

from policies.simulation.profile import Profile

Mix = dict[int | None, float]
"""Shares of requests by choice; None is refused."""


def fluid_bound(
    costs: Sequence[float], values: Sequence[float], load: float, lost: float, served: float = 0.0
) -> tuple[float, Mix]:
    """The mean value of a request at best, and the shares of the choices.

    Of each choice `costs` are over the base's and `values` the mean worth; a request that is not
    served costs nothing and is worth `lost`. At `load` times what the base can serve, costs may
    average 1 / load. At least the share `served` (0..1) is answered, if the cheapest choice can.
    """
    room = 1.0 / load
    points: list[tuple[int | None, float, float]]
    points = [(i, c, v) for i, (c, v) in enumerate(zip(costs, values, strict=True))]
    best, mix = _mixed([(None, 0.0, lost), *points], room)
    served = min(served, room / min(costs))
    if 1 - mix.get(None, 0.0) >= served:
        return best, mix
    # Value is concave in the share that is served, so what is asked for is all that is.
    best, mix = _mixed(points, room / served)
    shares: Mix = {None: 1 - served, **{one: served * share for one, share in mix.items()}}
    return served * best + (1 - served) * lost, shares


def _mixed(points: Sequence[tuple[int | None, float, float]], room: float) -> tuple[float, Mix]:
    """With one resource the linear programme's optimum mixes at most two choices."""
    best, mix = -math.inf, {}
    for one, cost, value in points:
        if cost <= room and value > best:
            best, mix = value, {one: 1.0}
        for other, dearer, worth in points:
            if cost <= room < dearer:
                share = (room - cost) / (dearer - cost)
                mean = share * worth + (1 - share) * value
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
    """On the mean of exp(-loss) over prompts `rows`; a lost request counts 0, or -0.5.

    `lengths` are a request's mean tokens of prompt and answer; the share `served` is answered.
    """
    variants = range(len(profile.variants))
    work = [profile.rates.work(variant, *lengths, slots) for variant in variants]
    costs = [seconds / work[0] for seconds in work]
    values = np.exp(-profile.prompts.loss[rows]).mean(0).tolist()
    return {
        name: fluid_bound(costs, values, load, lost, served)[0]
        for name, lost in (("quality", 0.0), ("quality_lost_half", -0.5))
    }
