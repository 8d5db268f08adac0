"""Requests in the simulated world: what is seen of them, and what becomes of them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from policies import ExploringPolicy, Objectives, RulePolicy, StaticPolicy
from policies.features import open_choices, vector
from policies.simulation.engine import EngineLimits
from policies.simulation.host import BATTERY, HOT, MAINS, HostScenario, SimulatedHost
from policies.simulation.server import SimulatedServer, replay
from policies.simulation.traffic import Arrival, at_load, synthetic
from tests.support.paper import RATES, VARIANTS, profile

FIRM = Objectives(ttft=1.0, firm=True)


def world(load=1.5, count=400, objectives=None, **changes):
    arrivals = at_load(synthetic(count, 1), load, RATES, 8)
    return SimulatedServer(profile(), arrivals, asked(count), objectives or FIRM, **changes)


def asked(count):
    """Rows of the profile."""
    return np.random.default_rng(2).integers(0, 100, count).tolist()


@pytest.mark.parametrize("host", [MAINS, BATTERY, HOT, replace(MAINS, sensed=False)])
def test_the_fast_vector_is_that_of_the_observation(host):
    it = world(
        host=host,
        limits=EngineLimits(kv_tokens=900),
        objectives=replace(FIRM, tpot=0.02),
    )
    blocked = 0
    for number in range(200):
        assert it.arrive()
        seen = it.observation()
        np.testing.assert_allclose(it.vector(), vector(seen, VARIANTS), rtol=1e-5, atol=1e-6)
        if not it.mask().all():
            blocked += 1
        np.testing.assert_array_equal(it.mask()[-1], open_choices(seen, VARIANTS)[-1])
        it.take(number % 3)
    assert blocked


def test_every_request_is_accounted_for_and_the_same_seed_is_the_same_run():
    runs = [replay(world(seed=3), ExploringPolicy(RulePolicy(), 0.5)) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 400


def test_what_a_lost_request_counts():
    done = replay(world(3.0, 2000), StaticPolicy("base", refuses=True))
    refused = [one for one in done if one.action is None]
    assert refused
    assert all(one.quality == 0.0 and not one.met for one in refused)
    served = [one for one in done if one.action is not None]
    assert sum(one.met for one in served) > 0.75 * len(served), (
        "most of those that are taken are in time"
    )


def test_quality_is_what_the_profile_measured_not_what_was_predicted():
    it = world(0.2)
    done = replay(it, StaticPolicy("tenth"))
    for one, row in zip(done, asked(len(done)), strict=True):
        assert one.quality == pytest.approx(math.exp(-it.profile.prompts.loss[row, 2]))


def test_the_rule_keeps_what_dense_serving_loses():
    shares = {}
    for policy in (StaticPolicy("base"), StaticPolicy("base", refuses=True), RulePolicy()):
        done = replay(world(1.5, 2000), policy)
        shares[policy.name] = sum(one.met for one in done) / len(done)
    assert shares["static:base"] < 0.2
    assert shares["refusing:base"] < 0.75
    assert shares["rule"] > 0.85
    calm = replay(world(0.5, 1000), RulePolicy())
    assert sum(one.action == 0 for one in calm) > 0.99 * len(calm)


def test_an_empty_battery_serves_nobody():
    done = replay(world(host=replace(BATTERY, battery_joules=100.0)), StaticPolicy("base"))
    lost = [one.action is None for one in done]
    assert not lost[0]
    assert all(lost[lost.index(True) :])


def test_a_low_battery_makes_the_rule_thrifty():
    done = replay(world(0.5, host=replace(BATTERY, charge=0.2)), RulePolicy())
    assert {one.action for one in done if one.action is not None} == {1}


def test_heat_slows_down_and_comes_back():
    host = SimulatedHost(HostScenario(heat_seconds=10.0, ambient=50.0))
    assert host.work(5.0, busy=True) == 5.0
    for _ in range(20):
        slowed = host.work(5.0, busy=True)
    assert slowed == 5.0 * host.scenario.throttled
    for _ in range(20):
        host.work(5.0, busy=False)
    assert host.work(1.0, busy=True) == 1.0
    assert host.charge is None


def test_a_full_cache_leaves_budgets_and_then_nothing():
    it = SimulatedServer(
        profile(), [Arrival(0.0, 100, 20)] * 3, [0, 1, 2], Objectives(), EngineLimits(kv_tokens=200)
    )
    kept = []
    while it.arrive():
        it.take(0)
        kept.append(it.engine.kv_promised)
    assert kept == [120, 184, 184], "whole, with a budget of 64, and refused"
    assert it.outcomes[2].action is None
