"""The expected length of an answer, from answers whose lengths are known."""

import random

import pytest

from policies.estimators import AnswerLengthEstimator


def test_lengths_leave_the_first_guess_quickly_and_then_follow_slowly():
    length = AnswerLengthEstimator()
    for _ in range(20):
        length.observe(500, 30)
    assert length.expected(500) < 36
    for _ in range(200):
        length.observe(500, 90)
    assert length.expected(500) == pytest.approx(90, rel=0.01)
    assert length.expected(40) == 40, "no more than the limit"


def test_limits_are_lengths_for_clients_that_set_them_so():
    exact, vague, generator = AnswerLengthEstimator(), AnswerLengthEstimator(), random.Random(0)
    for _ in range(300):
        limit = generator.randrange(10, 400)
        exact.observe(limit, limit)
        vague.observe(4000, limit)
        vague.observe(limit + 600, 200)
    for limit in (20, 150, 390):
        assert exact.expected(limit) == pytest.approx(limit, rel=0.05)
    assert vague.expected(4000) == pytest.approx(vague.expected(600), rel=0.25)
    assert vague.expected(8000) == vague.expected(4000)


def test_longer_limits_never_mean_shorter_answers():
    length = AnswerLengthEstimator()
    for step in range(100):
        length.observe(10 + step, 200 - step)
    assert length.expected(300) == length.expected(400)
