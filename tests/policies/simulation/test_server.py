"""Requests in the simulated server: what a policy is shown of them, and how they go."""

import math
from dataclasses import replace

import numpy as np
import pytest

from policies import ExploringPolicy, Objectives, RulePolicy, StaticPolicy
from policies.features import observation_vector, open_choices
from policies.simulation.deciding import replay
from policies.simulation.engine import EngineLimits
from policies.simulation.host import BATTERY, HOT, MAINS, HostScenario, SimulatedHost
from policies.simulation.scenario import Scenario
from policies.simulation.server import SimulatedServer
from policies.simulation.traffic import Arrival, at_load, synthetic
from tests.support.paper import CHOICES, RATES, READERS, VARIANTS, profile

FIRM = Objectives(ttft=1.0, firm=True)


def simulated(load=1.5, count=400, objectives=FIRM, readers=(), **changes):
    arrivals = at_load(synthetic(count, 1), load, RATES, 8)
    scenario = Scenario(objectives, **changes)
    return SimulatedServer(profile(readers=readers), arrivals, prompt_rows(count), scenario)


def prompt_rows(count):
    """Return random rows of the profile."""
    return np.random.default_rng(2).integers(0, 100, count).tolist()


@pytest.mark.parametrize(("readers", "names"), [((), VARIANTS), (READERS, CHOICES)])
@pytest.mark.parametrize("host", [MAINS, BATTERY, HOT, replace(MAINS, sensed=False)])
def test_the_fast_features_are_those_of_the_observation(host, readers, names):
    server = simulated(
        host=host,
        readers=readers,
        limits=EngineLimits(kv_tokens=900),
        objectives=replace(FIRM, tpot=0.02),
    )
    blocked = 0
    for number in range(200):
        assert server.arrive()
        seen = server.observation()
        np.testing.assert_allclose(
            server.features(), observation_vector(seen, names), rtol=1e-5, atol=1e-6
        )
        if not server.open_choices().all():
            blocked += 1
        np.testing.assert_array_equal(server.open_choices()[-1], open_choices(seen, names)[-1])
        server.take(number % len(names))
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


def test_a_reader_s_loss_is_that_of_the_prompt_that_it_reads():
    server = simulated(0.2, readers=READERS)
    done = replay(server, StaticPolicy("half+quick"))
    arrivals = at_load(synthetic(400, 1), 0.2, RATES, 8)
    for one, row, arrival in zip(done, prompt_rows(400), arrivals, strict=True):
        known = server.profile.prompts
        more = 0.02 if arrival.prompt <= 60 else 0.05
        assert one.action == CHOICES.index("half+quick")
        assert one.loss == pytest.approx(known.loss[row, 1] + more)
        assert one.surprise == pytest.approx(known.surprise[row, 1] + more)


def test_a_pair_has_no_budget_and_needs_its_whole_cache():
    arrivals = [Arrival(0.0, 100, 20)] * 3
    limits = EngineLimits(kv_tokens=200)
    server = SimulatedServer(profile(readers=READERS), arrivals, [0, 1, 2], Scenario(limits=limits))
    assert server.arrive()
    assert server.open_choices().tolist() == [True] * 6 + [False]
    server.take(0)
    assert server.arrive()
    assert server.open_choices().tolist() == [True] * 5 + [False, False]
    assert {c.action.label for c in server.observation().candidates if c.action.reader} == {
        "base+quick", "base+quicker", "base+quick+kv-64", "base+quicker+kv-64", "half+quick",
    }  # fmt: skip
    server.take(5)
    assert server.outcomes[1].action is None


def test_deep_prompts_are_read_by_a_reader_and_written_by_the_base_when_time_is_short():
    """A first token in 100 ms: 300 tokens take the base 158 ms, the quicker reader 87."""
    tight, arrivals = Objectives(ttft=0.1), [Arrival(float(i), 300, 5) for i in range(4)]
    server = SimulatedServer(profile(readers=READERS), arrivals, [0] * 4, Scenario(tight))
    assert server.arrive()
    ttft = {c.action.choice: c.ttft for c in server.observation().candidates}
    assert ttft["base"] == pytest.approx(2 * 0.004 + 300 * 0.0005)
    assert ttft["base+quicker"] == pytest.approx(2 * 0.004 + (0.5 * 300 + 16) * 0.0005)
    server = SimulatedServer(profile(readers=READERS), arrivals, [0] * 4, Scenario(tight))
    assert {one.action for one in replay(server, RulePolicy())} == {2}
    slow = Scenario(Objectives(ttft=1.0))
    idle = SimulatedServer(profile(readers=READERS), arrivals, [0] * 4, slow)
    assert {one.action for one in replay(idle, RulePolicy())} == {0}, "no need, no loss"


@pytest.mark.slow
def test_readers_keep_more_of_long_prompts_than_smaller_variants():
    arrivals = at_load([Arrival(a.at, 8 * a.prompt, a.output) for a in synthetic(2000, 1)],
                       1.5, RATES, 16)  # fmt: skip
    kept = []
    for made in (profile(readers=READERS), profile()):
        server = SimulatedServer(made, arrivals, prompt_rows(2000), Scenario(Objectives(ttft=8.0)))
        kept.append(sum(one.quality for one in replay(server, RulePolicy())) / 2000)
    assert kept[0] > 1.04 * kept[1]


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


def test_a_request_that_waited_is_decided_on_again_when_it_is_read():
    """Eight arrive at once at a server of two slots: six wait, and are priced anew at their turn.

    Behind the first of them there is a queue, and none behind the last.
    """
    arrivals = [Arrival(1e-3 * i, 200, 30) for i in range(8)]
    limits = EngineLimits(max_running=2)
    scenario = Scenario(Objectives(ttft=1.0, firm=True), limits)
    server = SimulatedServer(profile(readers=READERS), arrivals, [0] * 8, scenario)
    seen: dict[int, list] = {}
    waits = {}
    while server.arrive():
        observation = server.observation()
        seen.setdefault(server.current, []).append(server.starting)
        if server.starting:
            waited = server.engine.clock - arrivals[server.current].at
            waits[server.current] = observation.wait
            assert observation.queued >= waited > 0
            assert observation.accepted
            assert not server.open_choices()[-1]
            ttft = observation.candidates[0].ttft
            assert ttft - observation.queued == pytest.approx(
                server.engine.predict_prefill(server.engine.running_step(), 0, 200)
            )
            server.take(2 if server.current == 7 else 1)
        else:
            server.take(0)
    assert seen == {0: [False], 1: [False]} | {i: [False, True] for i in range(2, 8)}
    assert waits[2] > waits[7] >= 0
    assert [server.outcome(i).action for i in range(8)] == [0, 0, *[1] * 5, 2]


def test_one_that_starts_is_not_refused_any_more():
    arrivals = [Arrival(0.0, 200, 30)] * 3
    scenario = Scenario(limits=EngineLimits(max_running=1))
    server = SimulatedServer(profile(readers=READERS), arrivals, [0] * 3, scenario)
    while server.arrive():
        server.take(None if server.starting else 2)
    assert [server.outcome(i).action for i in range(3)] == [2, 2, 2], "as when it arrived"
