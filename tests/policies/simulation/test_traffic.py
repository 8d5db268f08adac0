"""Lengths of a trace, scaled to a small machine."""

import pytest

from policies.simulation.traffic import Arrival, scaled, scaled_together, synthetic

CODE = [Arrival(float(i), 1000 + 40 * i, 10 + i) for i in range(101)]
"""Long prompts and short answers: 3060 tokens in the median, 50 prompt tokens for each written."""


def test_one_factor_keeps_the_ratio_of_prompt_to_answer():
    found = scaled_together(CODE, 306, 10_000)
    assert sorted(a.prompt + a.output for a in found)[50] == pytest.approx(306, abs=1)
    for before, after in zip(CODE, found, strict=True):
        assert after.at == before.at
        assert after.prompt == pytest.approx(before.prompt / 10, abs=1)
        assert after.output == pytest.approx(before.output / 10, abs=0.5) or after.output == 2


def test_a_long_request_is_scaled_further_but_not_out_of_shape():
    found = scaled_together([*CODE, Arrival(200.0, 90_000, 30_000)], 306, 1000)
    assert found[-1] == Arrival(200.0, 750, 250)
    assert found[0].prompt == pytest.approx(1000 / 10, rel=0.03)


def test_short_requests_are_not_made_longer():
    short = [Arrival(float(i), 10 + i, 5) for i in range(9)]
    assert scaled_together(short, 1000, 2000) == short


def test_own_lengths_are_the_trace_s_and_prompts_those_of_short_chats():
    own, chats = scaled(CODE, "own"), scaled(CODE, "prompts")

    def ratio(found):
        return sum(a.prompt for a in found) / sum(a.output for a in found)

    assert ratio(own) == pytest.approx(ratio(CODE), rel=0.1)
    assert ratio(chats) == pytest.approx(80 / 60, rel=0.1)
    assert max(a.prompt + a.output for a in own) <= 1600
    assert scaled(synthetic(50, 0), "own") == synthetic(50, 0)
