"""The factor between predicted and measured waits."""

import pytest

from policies.estimators import WaitBiasEstimator


def test_predicted_waits_are_corrected_by_measured_ones():
    bias = WaitBiasEstimator()
    for _ in range(200):
        bias.observe(bias.factor * 1.0, 2.0)
    assert bias.factor == pytest.approx(2.0, rel=0.01)
    bias.observe(0.01, 5.0)
    assert bias.factor == pytest.approx(2.0, rel=0.01), "a wait that short says nothing"
    for _ in range(500):
        bias.observe(1.0, 1000.0)
    assert bias.factor == 4.0
