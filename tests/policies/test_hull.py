"""What is worth mixing, against trying every mix of two."""

import itertools
import math
import random

import pytest

from policies import Action, Candidate
from policies.hull import best_yield, concave_hull


def made(points):
    return [
        Candidate(Action(f"v{i}"), loss, cost, 0.1, 0.02) for i, (cost, loss) in enumerate(points)
    ]


def beaten(one, others):
    """Whether another, or a mix of two others at its cost, keeps as much or more."""
    value = math.exp(-one.loss)
    for other in others:
        if other.cost <= one.cost and math.exp(-other.loss) >= value - 1e-12:
            return True
    for left, right in itertools.permutations(others, 2):
        if left.cost < one.cost < right.cost:
            share = (one.cost - left.cost) / (right.cost - left.cost)
            mixed = share * math.exp(-right.loss) + (1 - share) * math.exp(-left.loss)
            if mixed >= value - 1e-12:
                return True
    return False


@pytest.mark.parametrize("seed", range(20))
def test_what_no_mix_beats_stays(seed):
    chance = random.Random(seed)
    points = [(1.0, 0.0), *((chance.uniform(0.3, 0.99), chance.uniform(0.05, 3)) for _ in range(9))]
    candidates = made(points)
    kept = concave_hull(candidates)
    assert [c.cost for c in kept] == sorted(c.cost for c in kept)
    for one in candidates:
        others = [c for c in candidates if c is not one]
        assert (one in kept) == (not beaten(one, others))


def test_an_unmeasured_loss_keeps_nothing():
    base, small = made([(1.0, 0.0), (0.4, 1.0)])
    unknown = Candidate(Action("new"), None, 0.5, 0.1, 0.02)
    assert concave_hull([base, small, unknown]) == [small, base]


@pytest.mark.parametrize("seed", range(5))
def test_no_cheaper_choice_mixed_with_others_beats_refusing_and_the_best_yield(seed):
    chance = random.Random(seed)
    candidates = made([(chance.uniform(0.2, 1.0), chance.uniform(0.0, 3)) for _ in range(9)])
    best = best_yield(candidates)
    for one in candidates:
        if one.cost < best.cost:  # a share of requests by `best` costs as much as all by `one`
            assert math.exp(-one.loss) <= one.cost / best.cost * math.exp(-best.loss)
