"""Requests in the simulated server: what a policy is shown of them, and how they go."""

import math
from dataclasses import replace

import numpy as np
import pytest

from policies import ExploringPolicy, Objectives, RulePolicy, StaticPolicy
from policies.features import observation_vector, open_choices
from policies.simulation.engine import EngineLimits
from policies.simulation.host import BATTERY, HOT, MAINS, HostScenario, SimulatedHost
from policies.simulation.server import Scenario, SimulatedServer, replay
from policies.simulation.traffic import Arrival, at_load, synthetic
from tests.support.paper import RATES, VARIANTS, profile

FIRM = Objectives(ttft=1.0, firm=True)


def simulated(load=1.5, count=400, objectives=FIRM, **changes):
    arrivals = at_load(synthetic(count, 1), load, RATES, 8)
    scenario = Scenario(objectives, **changes)
    return SimulatedServer(profile(), arrivals, prompt_rows(count), scenario)


def prompt_rows(count):
    """Return random rows of the profile."""
    return np.random.default_rng(2).integers(0, 100, count).tolist()


@pytest.mark.parametrize("host", [MAINS, BATTERY, HOT, replace(MAINS, sensed=False)])
def test_the_fast_features_are_those_of_the_observation(host):
    server = simulated(
        host=host,
        limits=EngineLimits(kv_tokens=900),
        objectives=replace(FIRM, tpot=0.02),
    )
    blocked = 0
    for number in range(200):
        assert server.arrive()
        seen = server.observation()
        np.testing.assert_allclose(
            server.features(), observation_vector(seen, VARIANTS), rtol=1e-5, atol=1e-6
        )
        if not server.open_choices().all():
            blocked += 1
        np.testing.assert_array_equal(server.open_choices()[-1], open_choices(seen, VARIANTS)[-1])
        server.take(number % 3)
    assert blocked


def test_every_request_is_accounted_for_and_the_same_seed_is_the_same_run():
    runs = [replay(simulated(seed=3), ExploringPolicy(RulePolicy(), 0.5)) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 400


def test_a_lost_request_has_no_quality():
    done = replay(simulated(3.0, 2000), StaticPolicy("base", refuses=True))
    refused = [one for one in done if one.action is None]
    assert refused
    assert all(one.quality == 0.0 and not one.met for one in refused)
    served = [one for one in done if one.action is not None]
    assert sum(one.met for one in served) > 0.75 * len(served), (
        "most of those that are taken are in time"
    )


def test_quality_is_what_the_profile_measured_not_what_was_predicted():
    server = simulated(0.2)
    done = replay(server, StaticPolicy("tenth"))
    for one, row in zip(done, prompt_rows(len(done)), strict=True):
        assert one.quality == pytest.approx(math.exp(-server.profile.prompts.loss[row, 2]))


@pytest.mark.slow
def test_the_rule_keeps_what_dense_serving_loses():
    shares = {}
    for policy in (StaticPolicy("base"), StaticPolicy("base", refuses=True), RulePolicy()):
        done = replay(simulated(1.5, 2000), policy)
        shares[policy.name] = sum(one.met for one in done) / len(done)
    assert shares["static:base"] < 0.2
    assert shares["refusing:base"] < 0.75
    assert shares["rule"] > 0.85
    calm = replay(simulated(0.5, 1000), RulePolicy())
    assert sum(one.action == 0 for one in calm) > 0.99 * len(calm)


def test_an_empty_battery_serves_nobody():
    done = replay(simulated(host=replace(BATTERY, battery_joules=100.0)), StaticPolicy("base"))
    lost = [one.action is None for one in done]
    assert not lost[0]
    assert all(lost[lost.index(True) :])


def test_a_low_battery_makes_the_rule_thrifty():
    done = replay(simulated(0.5, host=replace(BATTERY, charge=0.2)), RulePolicy())
    assert {one.action for one in done if one.action is not None} == {1}


def test_heat_slows_down_and_comes_back():
    host = SimulatedHost(HostScenario(heat_seconds=10.0, ambient=50.0))
    assert host.spend(5.0, busy=True) == 5.0
    for _ in range(20):
        slowed = host.spend(5.0, busy=True)
    assert slowed == 5.0 * host.scenario.throttled
    for _ in range(20):
        host.spend(5.0, busy=False)
    assert host.spend(1.0, busy=True) == 1.0
    assert host.charge is None


def test_a_full_cache_leaves_budgets_and_then_nothing():
    server = SimulatedServer(
        profile(),
        [Arrival(0.0, 100, 20)] * 3,
        [0, 1, 2],
        Scenario(limits=EngineLimits(kv_tokens=200)),
    )
    kept = []
    while server.arrive():
        server.take(0)
        kept.append(server.engine.kv_promised)
    assert kept == [120, 184, 184], "whole, with a budget of 64, and refused"
    assert server.outcomes[2].action is None
