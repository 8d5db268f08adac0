"""Yields: quality over cost, on requests that stand for a trace."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch

from benchmarks.yields import Work, YieldMeter, spread_over, yield_interval
from policies.simulation.traffic import synthetic
from pruners.support.fingerprint import fingerprint
from server.engine.loading.load import load_model, load_transformers
from tests.support.artefacts import artefact_with_readers
from tests.support.tiny import save_tiny


def test_requests_that_stand_for_a_trace_are_as_long_as_the_trace():
    trace = synthetic(3000, 0)
    chosen = spread_over(trace, 40)
    assert len(set(chosen)) == 40
    for name in ("prompt", "output"):
        whole, part = (fmean(getattr(one, name) for one in found) for found in (trace, chosen))
        assert part == pytest.approx(whole, rel=0.05)


def test_the_yield_is_quality_over_cost():
    random = np.random.default_rng(1)
    quality = random.uniform(0.8, 1.0, 400)
    value, low, high = yield_interval(quality.tolist(), [0.75] * 5)
    assert value == pytest.approx(quality.mean() / 0.75)
    half = 1.96 * quality.std() / 20 / 0.75
    assert ((high - low) / 2) == pytest.approx(half, rel=0.15)
    _, low, high = yield_interval([0.9] * 9, [0.7, 0.8, 0.9])
    assert (low, high) == pytest.approx((0.9 / 0.9, 0.9 / 0.7)), "repeats differ"


def test_the_meter_answers_by_the_choice_and_reads_again(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    source = load_transformers(folder, torch.float32)
    artefact = replace(artefact_with_readers(), fingerprint=fingerprint(source))
    model = load_model(folder, "tiny", "fp32", artefact)
    work = Work(["the quick brown fox jumps over the dog " * 16] * 2, [6, 9])
    meter = YieldMeter(model, work, 400)
    assert meter.seconds("base+read-50") > 0
    requests = work.requests(model, "base+read-50", 3)
    assert [(one.reader.name, one.max_tokens) for one in requests] == [
        ("read-50", 6),
        ("read-50", 9),
    ]
    assert work.requests(model, "base", 3)[0].reader is None
    assert requests[0].prompt[:4] != work.requests(model, "base", 4)[0].prompt[:4]
    found = meter.losses(["base", "base+read-50"])
    assert found["base"] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert min(found["base+read-50"]) > 1e-5
