"""What recent requests say of the next one, from arrivals whose rate is known."""

import random

import pytest

from policies.estimators.load import (
    AnswerLengthEstimator,
    LoadEstimator,
    RequestSizes,
    WaitBiasEstimator,
)


def arriving(demand: LoadEstimator, load: float, seconds: float, start: float = 0.0) -> float:
    """Ten requests a second, from an idle start, that bring `load` seconds of work a second."""
    for number in range(int(10 * seconds)):
        demand.add(start + number / 10, load / 10, idle=number == 0)
    return demand.value


@pytest.mark.parametrize("load", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seconds", [3.0, 6.0, 30.0])
def test_it_finds_the_load_soon_and_keeps_to_it(load, seconds):
    assert arriving(LoadEstimator(), load, seconds) == pytest.approx(load, rel=0.06)


def test_the_first_requests_are_no_flood():
    demand = LoadEstimator()
    demand.add(0.0, 0.5, idle=True)
    assert demand.value < 0.5
    assert arriving(LoadEstimator(), 2.0, 0.5) < 1.0, "half a second says little"


def test_what_an_idle_machine_has_met_is_forgotten():
    demand = LoadEstimator()
    arriving(demand, 3.0, 10.0)
    assert arriving(demand, 0.5, 3.0, start=10.1) == pytest.approx(0.5, rel=0.06)


def test_it_follows_a_load_that_falls():
    demand = LoadEstimator()
    arriving(demand, 2.0, 20.0)
    for number in range(100):
        demand.add(20.0 + number / 10, 0.02)
    assert 0.2 < demand.value < 0.2 + 2.0 * 0.2, "an e-fold and more of what there was is gone"


def test_a_rank_is_the_share_of_work_in_smaller_requests():
    sizes = RequestSizes()
    assert sizes.rank(10) == 1.0, "nothing is known"
    for number in range(300):
        sizes.add(10_000 if number < 150 else 10 * (7 * number % 10 + 1))
    for place in range(1, 11):  # of the last hundred, ten are of each size
        smaller = sum(range(1, place)) + place / 2
        assert sizes.rank(10 * place) == pytest.approx(smaller / 55)
    assert (sizes.rank(1), sizes.rank(101)) == (0.0, 1.0)


def test_waits_are_corrected_by_what_they_were():
    bias = WaitBiasEstimator()
    for _ in range(200):
        bias.learn(bias.factor * 1.0, 2.0)
    assert bias.factor == pytest.approx(2.0, rel=0.01)
    bias.learn(0.01, 5.0)
    assert bias.factor == pytest.approx(2.0, rel=0.01), "a wait that short says nothing"
    for _ in range(500):
        bias.learn(1.0, 1000.0)
    assert bias.factor == 4.0


def test_answers_lengths_leave_the_first_guess_quickly_and_then_forget():
    length = AnswerLengthEstimator()
    for _ in range(20):
        length.learn(500, 30)
    assert length.expected(500) < 36
    for _ in range(200):
        length.learn(500, 90)
    assert length.expected(500) == pytest.approx(90, rel=0.01)
    assert length.expected(40) == 40, "no more than it may have"


def test_clients_that_ask_for_what_they_want_are_taken_at_their_word():
    exact, vague, chance = AnswerLengthEstimator(), AnswerLengthEstimator(), random.Random(0)
    for _ in range(300):
        limit = chance.randrange(10, 400)
        exact.learn(limit, limit)
        vague.learn(4000, limit)
        vague.learn(limit + 600, 200)
    for limit in (20, 150, 390):
        assert exact.expected(limit) == pytest.approx(limit, rel=0.05)
    assert vague.expected(4000) == pytest.approx(vague.expected(600), rel=0.25)
    assert vague.expected(8000) == vague.expected(4000)


def test_longer_limits_never_mean_shorter_answers():
    length = AnswerLengthEstimator()
    for step in range(100):
        length.learn(10 + step, 200 - step)
    assert length.expected(300) == length.expected(400)
