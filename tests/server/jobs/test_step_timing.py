"""Times of blocks, with a clock that we set."""

import pytest

from pruners.allocation import LatencyCost
from pruners.variant import VariantSpec, base_spec
from server.engine.loading.load import load_model
from server.jobs import step_timing
from tests.support.tiny import save_tiny


def seconds(spec: VariantSpec) -> float:
    return 0.5 + sum(0.25 * bool(g) + 0.1 * g for g in spec.kv_groups) + 0.01 * sum(spec.ffn)


def test_the_latency_of_blocks_adds_up_to_that_of_a_step(monkeypatch, tmp_path):
    model = load_model(save_tiny(tmp_path / "tiny"), "tiny", "fp32")
    shape = model.weights.shape
    monkeypatch.setattr(
        step_timing, "decode_timer", lambda decoder, spec, *_: lambda: seconds(spec)
    )
    latency = step_timing.block_latency(model, repeats=3)
    base = base_spec(shape)
    mixed = VariantSpec("mixed", (0, 1, shape.kv_groups), (32, 0, 64))
    for spec in (base, mixed):
        assert latency(spec) == pytest.approx(seconds(spec))


def test_measured_latency_is_positive(tmp_path):
    model = load_model(save_tiny(tmp_path / "tiny"), "tiny", "fp32")
    assert step_timing.block_latency(model, repeats=1)(base_spec(model.weights.shape)) > 0


def test_latency_is_interpolated_between_widths_and_never_falls_with_width():
    latency = LatencyCost(
        1.0, {"attention": {2: 0.4, 1: 0.5, 0: 0.0}, "mlp": {64: 0.6, 32: 0.2, 0: 0}}
    )

    def at(kv: int, ffn: int) -> float:
        return latency(VariantSpec("x", (kv,), (ffn,)))

    assert at(0, 0) == 1
    assert at(0, 48) == pytest.approx(1.4)
    assert at(1, 0) == at(2, 0) == 1.5  # fewer groups never cost more
