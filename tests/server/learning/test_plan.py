"""The order of what is learned, and what counts as done."""

from dataclasses import replace

from pruners.architecture import Shape
from server.learning.plan import (
    STAGES,
    describe_stages,
    finished,
    needed_bytes,
    open_stages,
    precision_for,
    with_finished,
)
from tests.support.artefacts import example_artefact

NAMES = [stage.name for stage in STAGES]


def test_the_cheapest_gain_comes_first():
    assert [stage.name for stage in open_stages(None)] == NAMES
    assert NAMES == ["reading", "budgets", "readers", "depth", "widths"]


def test_finished_stages_are_not_learned_again():
    learned = with_finished(example_artefact(), "reading")
    assert [stage.name for stage in open_stages(learned)] == NAMES[1:]
    learned = with_finished(learned, "budgets")
    assert finished(learned) == ("reading", "budgets")


def test_what_was_built_by_hand_is_left_as_it_is():
    assert open_stages(example_artefact()) == []


def test_a_damaged_note_of_stages_learns_all_again():
    noted = replace(example_artefact(), provenance={"learned": {"stages": None}})
    assert [stage.name for stage in open_stages(noted)] == NAMES


def test_stages_are_told_as_done_now_or_later():
    told = describe_stages(("reading",), "budgets")
    assert [one["state"] for one in told] == ["done", "now", "later", "later", "later"]


def test_a_larger_model_needs_more_memory():
    small = Shape(layers=30, hidden=576, heads=9, kv_groups=3, head_dim=64, ffn=1536, vocab=49152)
    large = Shape(
        layers=16, hidden=2048, heads=32, kv_groups=8, head_dim=64, ffn=8192, vocab=128256
    )
    assert 1.5e9 < needed_bytes(small, STAGES[0], "fp32") < 2.5e9
    assert needed_bytes(large, STAGES[0], "fp32") > 4 * 1.2e9
    assert needed_bytes(large, STAGES[-1], "fp32") > needed_bytes(large, STAGES[0], "fp32")
    assert precision_for(large, 16e9) == "fp32"
    assert precision_for(large, 8e9) == "bf16"
    assert precision_for(large, None) == "fp32"
