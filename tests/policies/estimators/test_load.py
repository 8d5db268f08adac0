"""The estimated load, from arrivals whose rate is known."""

import pytest

from policies.estimators import LoadEstimator


def arrive(estimator: LoadEstimator, load: float, seconds: float, start: float = 0.0) -> float:
    """Ten requests a second, from an idle start, that bring `load` seconds of work a second."""
    for number in range(int(10 * seconds)):
        estimator.observe(start + number / 10, load / 10, idle=number == 0)
    return estimator.value


@pytest.mark.parametrize("load", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seconds", [3.0, 6.0, 30.0])
def test_it_finds_the_load_soon_and_stays_there(load, seconds):
    assert arrive(LoadEstimator(), load, seconds) == pytest.approx(load, rel=0.06)


def test_the_first_requests_do_not_look_like_a_high_load():
    estimator = LoadEstimator()
    estimator.observe(0.0, 0.5, idle=True)
    assert estimator.value < 0.5
    assert arrive(LoadEstimator(), 2.0, 0.5) < 1.0, "half a second says little"


def test_work_that_an_idle_machine_has_done_is_forgotten():
    estimator = LoadEstimator()
    arrive(estimator, 3.0, 10.0)
    assert arrive(estimator, 0.5, 3.0, start=10.1) == pytest.approx(0.5, rel=0.06)


def test_it_follows_a_load_that_falls():
    estimator = LoadEstimator()
    arrive(estimator, 2.0, 20.0)
    for number in range(100):
        estimator.observe(20.0 + number / 10, 0.02)
    assert 0.2 < estimator.value < 0.2 + 2.0 * 0.2, "more than a factor e of it is gone"
