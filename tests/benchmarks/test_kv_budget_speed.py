"""`benchmarks.kv_budget_speed` in small."""

import pytest

from benchmarks.kv_budget_speed import measure
from pruners.kv import QUEST
from server.engine.backends.native.library import is_available
from server.engine.loading.load import load_model
from server.jobs.kv_budget_timing import AnswerSize
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.skipif(not is_available(), reason="the native kernels are not built")


def test_all_ways_to_keep_a_budget_are_timed(tmp_path):
    model = load_model(save_tiny(tmp_path / "tiny"), "tiny", "int8")
    methods = ((None, ""), (64, "streaming"), (64, QUEST))
    rows = measure(model, AnswerSize(2, 100, 12), methods, repeats=1)
    assert [row["budget"] for row in rows] == ["whole", "streaming 64", "quest 64"]
    assert all(row["seconds"] > 0 for row in rows)
    for row in rows:
        assert row["speed_up"] == pytest.approx(rows[0]["seconds"] / row["seconds"])
