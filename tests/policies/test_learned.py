"""Learned and exploring policies: what is closed is never chosen, and odds are odds."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from policies import (
    Action,
    Candidate,
    Constraint,
    ExploringPolicy,
    LearnedPolicy,
    Objectives,
    Observation,
    Reason,
    RulePolicy,
    StaticPolicy,
    propensities,
)
from policies.features import CLIP, choice_names, feature_names, observation_vector
from tests.support.paper import COSTS, LOSSES, VARIANTS

FEATURES = len(feature_names(VARIANTS))


def observe(wait=0.0, blocked=(), kv=(), **more):
    candidates = []
    for name, loss, cost in zip(VARIANTS, LOSSES, COSTS, strict=True):
        for budget in (None, *kv):
            why = Constraint.KV_MEMORY if (name, budget) in blocked else None
            candidates.append(Candidate(Action(name, budget), loss, cost, wait + 0.1, 0.02, why))
    return Observation(tuple(candidates), Objectives(ttft=1.0, firm=True), wait, 0.5, **more)


def preferring(*order):
    """A policy that values choices in this order."""
    bias = np.zeros(len(choice_names(VARIANTS)), np.float32)
    for place, name in enumerate(order):
        bias[choice_names(VARIANTS).index(name)] = 10.0 - place
    return LearnedPolicy("dqn", VARIANTS, ((np.zeros((len(bias), FEATURES), np.float32), bias),))


def test_the_most_valued_open_choice():
    policy = preferring("half", "tenth")
    assert policy.choose(observe()) == (Action("half"), Reason.LEARNED)
    closed = observe(blocked=[("half", None)])
    assert policy.choose(closed) == (Action("tenth"), Reason.LEARNED)


def test_the_largest_open_cache():
    seen = observe(blocked=[("half", None)], kv=(256, 64))
    assert preferring("half").choose(seen) == (Action("half", 256), Reason.LEARNED)


def test_refusing_is_closed_to_whoever_is_in_time_or_accepted():
    policy = preferring("refuse", "base")
    assert policy.choose(observe(2.0, queued=0.1)) == (Action("base"), Reason.LEARNED)
    assert policy.choose(observe(0.84, rank=0.3)) == (Action("base"), Reason.LEARNED)
    assert policy.choose(observe(0.86, rank=0.3))[1] is Reason.LATE
    assert policy.choose(observe(0.44, rank=1.0)) == (Action("base"), Reason.LEARNED)
    assert policy.choose(observe(0.46, rank=1.0))[1] is Reason.LATE, "the largest goes first"


def test_nothing_open_gets_the_smallest_cache_of_the_base():
    every = [(name, budget) for name in VARIANTS for budget in (None, 64)]
    seen = observe(blocked=every, kv=(64,))
    assert preferring("half").choose(seen) == (Action("base", 64), Reason.LEAST_BAD)


def test_static_that_refuses():
    policy = StaticPolicy("base", refuses=True)
    assert policy.choose(observe(0.5)) == (Action("base"), Reason.FIXED)
    assert policy.choose(observe(0.9))[1] is Reason.LATE
    assert StaticPolicy("base").choose(observe(0.9))[1] is Reason.FIXED


@pytest.mark.parametrize("wait", [0.0, 0.95])
def test_odds_are_what_is_drawn(wait):
    policy = ExploringPolicy(RulePolicy(), 0.4)
    odds = propensities(policy, observe(wait), policy.choose)
    assert sum(odds.values()) == pytest.approx(1.0)
    drawn = Counter()
    for index in range(4000):
        action, reason = policy.choose(observe(wait, draw=index / 4000))
        drawn["refuse" if reason is Reason.LATE else action.label] += 1 / 4000
    assert drawn == pytest.approx(odds, abs=0.002)
    assert ("refuse" in odds) == (wait > 0.85)


def test_chance_keeps_out_of_what_is_closed():
    seen = observe(blocked=[("base", None)])
    chance, half = ExploringPolicy(RulePolicy(), 1.0), StaticPolicy("half")
    odds = propensities(chance, seen, chance.choose)
    assert odds == pytest.approx({"half": 0.5, "tenth": 0.5})
    assert propensities(half, seen, half.choose) == {"half": 1.0}
    assert ExploringPolicy(RulePolicy(), 1.0).name == "random"


def test_the_same_observation_is_the_same_choice():
    policy, seen = ExploringPolicy(RulePolicy(), 0.7), observe(draw=0.3)
    assert policy.choose(seen) == policy.choose(replace(seen))


READING = (Action("base", None, "read-70"), Action("base", 64, "read-70"))


def with_readers(*blocked):
    reading = [
        Candidate(
            action, 0.03, 0.7, 0.05, 0.02, Constraint.KV_MEMORY if action in blocked else None
        )
        for action in READING
    ]
    seen = observe()
    return replace(seen, candidates=(*seen.candidates, *reading))


def test_a_network_may_choose_readers_and_one_without_never_does():
    choices = (*VARIANTS, "base+read-70")
    wide = np.zeros((len(choices) + 1, len(feature_names(choices))), np.float32)
    bias = np.array([0, 0, 0, 1, 0], np.float32)
    policy = LearnedPolicy("dqn", choices, ((wide, bias),))
    assert policy.choose(with_readers()) == (READING[0], Reason.LEARNED)
    assert policy.choose(with_readers(READING[0])) == (READING[1], Reason.LEARNED)
    assert policy.choose(with_readers(*READING))[0] == Action("base")
    assert preferring("half").choose(with_readers()) == (Action("half"), Reason.LEARNED)


def test_losses_of_readers_are_features():
    choices = (*VARIANTS, "base+read-70", "half+read-70")
    vector = dict(
        zip(feature_names(choices), observation_vector(with_readers(), choices), strict=True)
    )
    assert vector["loss base+read-70"] == pytest.approx(0.03)
    assert vector["loss half+read-70"] == CLIP, "there is no such candidate"
    assert vector["loss base"] == 0.0


def test_a_request_that_names_a_reader_gets_it_from_a_network_that_knows_none():
    seen = with_readers()
    named = replace(seen, candidates=seen.candidates[-2:])
    assert preferring("half").choose(named) == (READING[0], Reason.LEAST_BAD)
    assert StaticPolicy("half").choose(named) == (READING[0], Reason.FIXED)
    memory = [replace(c, blocked=Constraint.KV_MEMORY) for c in named.candidates]
    assert preferring("half").choose(replace(named, candidates=tuple(memory)))[0] == READING[1]


def test_chance_draws_readers_too():
    chance = ExploringPolicy(RulePolicy(), 1.0)
    odds = propensities(chance, with_readers(), chance.choose)
    assert odds == pytest.approx(dict.fromkeys((*VARIANTS, "base+read-70"), 0.25))
