"""The simulated queue against what can be worked out by hand."""

import math

import pytest

from controller.simulator import Arrival, Simulator
from policies import RuleSettings
from policies.train import bootstrap, train
from tests.controller.test_latency import BASE, HALF, fitted


def replay(arrivals, variant=BASE, slots=4, step_tokens=64):
    simulator = Simulator(fitted(), slots, step_tokens, 10_000)
    seen = []

    def decide(arrival):
        seen.append(simulator.load())
        return variant, 0.5

    return simulator.run(arrivals, decide, lambda _: None), seen


def test_one_request_takes_its_prompt_and_its_tokens():
    model = fitted()
    (outcome,), _ = replay([Arrival(3.0, 64, 5)])
    assert outcome.ttft == pytest.approx(model.seconds([(BASE, 64)], 1, 0), rel=0.02)
    assert outcome.tpot == pytest.approx(model.seconds([(BASE, 1)], 1, 66), rel=0.02)
    assert outcome.quality == pytest.approx(math.exp(-0.5))


def test_prompts_longer_than_a_step_are_read_in_parts():
    (outcome,), _ = replay([Arrival(0.0, 200, 2)])
    model = fitted()
    by_hand = sum(model.seconds([(BASE, n)], int(n == 8), 0) for n in (64, 64, 64, 8))
    assert outcome.ttft == pytest.approx(by_hand, rel=0.05)


def test_answers_beyond_the_slots_wait_and_everything_is_counted():
    arrivals = [Arrival(0.0, 16, 20) for _ in range(12)]
    outcomes, seen = replay(arrivals)
    assert len(outcomes) == 12
    assert seen[-1].waiting == 11, "all decisions at once, before the first step"
    waits = [o.ttft for o in outcomes]
    assert waits == sorted(waits)
    assert waits[8] > 1.8 * waits[4]


def test_outcomes_come_back_in_order_of_arrival():
    arrivals = [Arrival(0.001 * i, 16, 40 - 6 * i) for i in range(4)]
    outcomes, _ = replay(arrivals)
    firsts = [a.at + o.ttft for a, o in zip(arrivals, outcomes, strict=True)]
    assert firsts == sorted(firsts)
    assert outcomes[0].tpot != outcomes[3].tpot


def test_smaller_variants_drain_the_same_queue_sooner():
    arrivals = [Arrival(0.0, 16, 20) for _ in range(12)]
    full, half = replay(arrivals)[0], replay(arrivals, HALF)[0]
    assert half[-1].ttft < 0.85 * full[-1].ttft


def scores(best, gain):
    """A replay in which one headroom is better than the others by `gain`."""

    def run(settings, split):
        offset = 0.0 if settings is None else 0.3
        offset += gain if settings is not None and settings.headroom == best else 0.0
        return [offset + 0.01 * (i % 7) for i in range(120)]

    return run


def test_training_finds_the_better_setting_and_promotes_it():
    trained = train(scores(0.8, 0.1), seed=0)
    assert trained.settings == RuleSettings(headroom=0.8)
    assert trained.promoted
    assert trained.report["gain_over_default_95"][0] > 0.05


def test_training_promotes_nothing_that_is_no_better():
    trained = train(scores(0.5, 0.0), seed=0)
    assert trained.settings == RuleSettings()
    assert not trained.promoted


def test_the_interval_covers_the_mean_and_narrows():
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 500
    low, high = bootstrap(few, 0)
    assert low < 0.5 < high
    assert bootstrap(many, 0)[1] - bootstrap(many, 0)[0] < 0.3 * (high - low)
