"""What the controller is told of a model: readers, their losses and what keeps reading tasks."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from controller import Catalogue
from controller.engine_status import shallow_part
from controller.pairs import ReaderFigures, WriterFigures, useful_pairs
from controller.step_time_model import StepTimeModel
from pruners.artefact.table import Accuracy
from pruners.variant import base_spec
from server.assembly import own_weights
from server.catalogue import build_catalogue, with_kv_method
from tests.support.artefacts import SHAPE, artefact_with_readers


def model_with(**tasks):
    """Return a model with the readers of the example; `tasks` are right answers of ten by reader,
    with underscores in names for hyphens."""
    artefact = artefact_with_readers()
    table = replace(
        artefact.table,
        reading_tasks={
            task.replace("_", "-"): {
                name.replace("_", "-"): Accuracy(10, right / 10, None, 0.1, 1.0)
                for name, right in found.items()
            }
            for task, found in tasks.items()
        },
    )
    variants = {"base": base_spec(SHAPE), **{spec.name: spec for spec in artefact.variants}}
    return SimpleNamespace(
        name="tiny", artefact=replace(artefact, table=table), readers=artefact.readers,
        variants=variants, token_kinds=None, weights=SimpleNamespace(shape=SHAPE, context=512),
    )  # fmt: skip


def test_readers_come_with_their_losses_by_length():
    catalogue = build_catalogue(model_with(), (64, 1024), None)
    assert list(catalogue.readers) == ["read-80", "read-60", "read-50"]
    measured = catalogue.readers["read-80"]
    assert measured.loss == 0.05
    assert [measured.expected_loss(tokens) for tokens in (10, 1023, 5000)] == [0.04, 0.04, 0.04]
    assert catalogue.readers["read-60"].expected_loss(10) is None
    assert catalogue.kv_budgets == (64,)
    assert {reader for _, reader in catalogue.pairs} <= {"read-80"}, "the others have no loss"


@pytest.mark.parametrize(
    ("tasks", "floor", "kept"),
    [
        ({}, 0.9, set()),  # nothing was measured
        ({"passkey_200": {"base": 10, "read_80": 9}}, 0.9, {"read-80"}),
        ({"passkey_200": {"base": 10, "read_80": 9}}, 0.95, set()),
        ({"passkey_200": {"base": 10, "read_80": 7}}, 0.7, {"read-80"}),
        ({"passkey_200": {"read_80": 9}}, 0.9, set()),  # what the base finds is unknown
        ({"lambada": {"base": 10, "read_80": 10}}, 0.9, set()),  # is no look-up
        (
            {"passkey_200": {"base": 10, "read_80": 8}, "passkey_900": {"base": 9, "read_80": 10}},
            0.9,
            {"read-80"},  # over all lengths
        ),
        (
            {"passkey_200": {"base": 9, "read_80": 9}, "lookup_200": {"base": 9, "read_80": 5}},
            0.9,
            set(),  # passkeys do not make up for look-ups
        ),
        (
            {"passkey_200": {"base": 9, "read_80": 2, "read_60": 9, "read_50": 8}},
            0.9,
            {"read-60"},
        ),
    ],
)
def test_a_reader_keeps_tasks_if_it_finds_nearly_what_the_base_finds(tasks, floor, kept):
    catalogue = build_catalogue(model_with(**tasks), (64,), None, floor)
    assert catalogue.keep_tasks == {"base", *(f"base+{name}" for name in kept)}


def test_only_pairs_that_no_mix_of_others_beats_are_offered():
    """By hand: for long documents mix-50 with read-50 has a cost of .275 and a quality of .45, and
    read-50 one of .55 and .90. On the line between, mix-96 with read-50 (.53, .55) would need .87,
    mix-50 (.5, .50) .82. For short questions the first is the cheapest, too; read-50 costs .95 and
    would need .95."""
    writers = {
        "base": WriterFigures(1.0, 1.0, 0.0),
        "mix-96": WriterFigures(0.96, 0.96, 0.5),
        "mix-50": WriterFigures(0.5, 0.5, 0.7),
    }
    readers = {"read-50": ReaderFigures(0.5, 0.1), "read-90": ReaderFigures(0.9, 0.4)}
    assert useful_pairs(writers, readers) == (("mix-50", "read-50"),)
    assert useful_pairs(writers, {}) == ()


def test_a_shallow_token_multiplies_the_maps_too():
    model = model_with()
    times = StepTimeModel(SHAPE, own_weights(model))
    lower = shallow_part(model.variants["base"], 1)
    counted = times.now.counter.count([(lower, 10, 0)], 0)
    maps = 2 * (64 * 2 * 2 * 16)  # of two layers, from 64 numbers to 2 * 32
    assert counted[2] == pytest.approx(10 * (lower.body_parameters(SHAPE) + maps) / 1e9)
    assert counted[1] == pytest.approx((lower.body_parameters(SHAPE) + maps) / 1e9)


@pytest.mark.parametrize(
    ("method", "freed"), [("streaming", True), ("snap", True), ("quest", False)]
)
def test_losses_of_budgets_are_not_claimed_for_a_method_that_was_not_measured(
    caplog, method, freed
):
    measured = Catalogue({"base": base_spec(SHAPE)}, (64,), {}, {64: 0.02})
    served = with_kv_method(measured, method)
    assert served.kv_budgets == (64,)
    assert served.budgets_free_memory == freed
    assert served.kv_loss == ({64: 0.02} if method == "streaming" else {})
    assert [method in line for line in caplog.messages] == [True] * (method != "streaming")
    without = with_kv_method(replace(measured, kv_budgets=()), method)
    assert len(caplog.messages) == (method != "streaming"), "there is nothing to say of no budgets"
    assert without.kv_budgets == ()
