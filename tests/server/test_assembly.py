"""How a server is put together: when a step of its engine counts as hanging."""

from types import SimpleNamespace

import pytest

from policies.learned import LearnedPolicy
from pruners.architecture import Shape
from pruners.variant import base_spec
from server.assembly import assemble, make_policy, stall_seconds
from server.engine.loading.load import load_model
from server.settings import Settings, SettingsError
from tests.support.tiny import save_tiny

BASE = base_spec(
    Shape(layers=2, hidden=64, heads=4, kv_groups=2, head_dim=16, ffn=96, vocab=384)
)  # fmt: skip


class _StepTimes(SimpleNamespace):
    """Stands in for the step-time model of a machine whose full step takes `step` seconds."""

    def seconds(self, rows, sampled):
        assert rows == [(BASE, 256, 0)]
        return self.step


@pytest.mark.parametrize(
    ("given", "step", "expected"),
    [(None, 0.1, 5.0), (None, 4.0, 40.0), (0.5, 4.0, 0.5), (60.0, 0.1, 60.0)],
)
def test_a_step_hangs_after_ten_full_steps_or_as_the_setting_says(given, step, expected):
    settings = Settings(stall_seconds=given)
    assert stall_seconds(settings, _StepTimes(step=step), BASE) == expected


def test_pages_are_not_selected_where_every_token_attends_to_all(tmp_path):
    model = load_model(save_tiny(tmp_path / "tiny"), "tiny", "fp32")
    with pytest.raises(SettingsError, match="kv_scorer quest needs int8 or int4 weights"):
        assemble(model, Settings(kv_scorer="quest"), None)


def test_a_trained_policy_does_not_know_budgets_that_free_no_memory(monkeypatch):
    trained = LearnedPolicy("dqn", ("base",), ())
    monkeypatch.setattr("server.assembly.named_policy", lambda *_: trained)
    model, catalogue = SimpleNamespace(fingerprint=""), SimpleNamespace(actions=list)
    assert make_policy(model, catalogue, Settings(kv_scorer="snap")) is trained
    with pytest.raises(SettingsError, match="set kv_scorer to another than quest"):
        make_policy(model, catalogue, Settings(kv_scorer="quest"))
