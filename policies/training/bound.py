"""What no policy beats on average: the best mix for a load, as if work were a fluid."""

from collections.abc import Sequence

import numpy as np

from policies.simulation.profile import Profile


def fluid_bound(
    costs: Sequence[float], values: Sequence[float], load: float, lost: float
) -> tuple[float, dict[int | None, float]]:
    """The mean value of a request at best, and the shares of the choices (None: refused).

    Of each choice `costs` are over the base's and `values` the mean worth; a request that is not
    served costs nothing and is worth `lost`. At `load` times what the base can serve, costs may
    average 1 / load. With one resource the linear programme's optimum mixes at most two choices.
    """
    points: list[tuple[int | None, float, float]] = [(None, 0.0, lost)]
    points += [(i, c, v) for i, (c, v) in enumerate(zip(costs, values, strict=True))]
    room = 1.0 / load
    best = lost
    mix: dict[int | None, float] = {None: 1.0}
    for one, cost, value in points:
        if cost <= room and value > best:
            best, mix = value, {one: 1.0}
        for other, dearer, worth in points:
            if cost < room < dearer:
                share = (room - cost) / (dearer - cost)
                mean = share * worth + (1 - share) * value
                if mean > best:
                    best, mix = mean, {one: 1 - share, other: share}
    return best, mix


def quality_bounds(
    profile: Profile, rows: np.ndarray, lengths: tuple[int, int], load: float, slots: int
) -> dict[str, float]:
    """On the mean of exp(-loss) over prompts `rows`; a lost request counts 0, or -0.5.

    `lengths` are a request's mean tokens of prompt and answer.
    """
    variants = range(len(profile.variants))
    work = [profile.rates.work(variant, *lengths, slots) for variant in variants]
    costs = [seconds / work[0] for seconds in work]
    values = np.exp(-profile.prompts.loss[rows]).mean(0).tolist()
    return {
        name: fluid_bound(costs, values, load, lost)[0]
        for name, lost in (("quality", 0.0), ("quality_lost_half", -0.5))
    }
