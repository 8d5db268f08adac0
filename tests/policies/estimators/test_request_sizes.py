"""The rank of a request's size among recent ones."""

import pytest

from policies.estimators import RequestSizes


def test_a_rank_is_the_share_of_work_in_smaller_requests():
    sizes = RequestSizes()
    assert sizes.rank(10) == 1.0, "nothing is known"
    for number in range(300):
        sizes.observe(10_000 if number < 150 else 10 * (7 * number % 10 + 1))
    for place in range(1, 11):  # of the last hundred, ten are of each size
        smaller = sum(range(1, place)) + place / 2
        assert sizes.rank(10 * place) == pytest.approx(smaller / 55)
    assert (sizes.rank(1), sizes.rank(101)) == (0.0, 1.0)
