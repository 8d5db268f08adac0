"""Readers that a recipe names, and that a build fits and measures."""

import dataclasses

import pytest
import torch

from pruners.architecture import Shape, locate
from pruners.artefact.folder import load_artefact
from pruners.builder import readers as builder
from pruners.builder.pipeline import build
from pruners.builder.readers import ReadingText, fit_readers
from pruners.builder.recipe import DEFAULT_READERS, BuildError, ReaderPlan, Recipe, make_readers
from pruners.builder.steps import BuildRows
from pruners.evaluation.reading_quality import ReaderSet, cut_answers, measure_readers
from pruners.reading.fit import solve_maps, sum_moments
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.support.checkpoint import Checkpoint
from tests.support.models import VOCAB, random_rows, tiny_model

SMOL = Shape(layers=30, hidden=576, heads=9, kv_groups=3, head_dim=64, ffn=1536, vocab=49152)
TEXT = ReadingText(
    random_rows(9, (40,), seed=3),
    cut_answers(random_rows(4, (40,), seed=5)),
    torch.arange(VOCAB) % 3 == 0,
    "random",
)
RECIPE = Recipe(
    ffn_keep=(0.34,), shares=(), kv_budgets=(), calibration_tokens=200, selection_tokens=60
)


def with_layers(layers: int) -> Shape:
    return dataclasses.replace(SMOL, layers=layers)


def test_default_readers_are_shares_of_the_layers_named_after_their_cost():
    readers = make_readers(DEFAULT_READERS, SMOL)
    assert [one.depth for one in readers.values()] == [18, 9, 9]
    assert [one.numbers for one in readers.values()] == [False, True, False]
    first = readers["read-67"]
    # By hand: a layer has 576 * (2 * 576 + 2 * 192 + 3 * 1536) weights, its keys and values 384.
    layer, mapped = 576 * (2 * 576 + 384 + 3 * 1536), 576 * 384
    shallow = (18 * layer + 12 * mapped) / (30 * layer)
    assert first == PromptReader("read-67", 18)
    assert round(100 * (60 + 452 * shallow) / 512) == 67
    assert all(name == one.name for name, one in readers.items())


@pytest.mark.parametrize("layers", range(2, 12))
def test_every_model_has_default_readers(layers: int):
    readers = make_readers(DEFAULT_READERS, with_layers(layers))
    assert readers
    assert all(0 < one.depth < layers for one in readers.values())


def test_a_model_of_one_layer_has_none():
    assert make_readers(DEFAULT_READERS, with_layers(1)) == {}


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ([ReaderPlan(30)], "depth 30 with 32 last tokens does not go with the model's 30 layers"),
        ([ReaderPlan(12.5)], "depth 12.5"),
        ([ReaderPlan(0)], "depth 0"),
        ([ReaderPlan(-1)], "depth -1"),
        ([ReaderPlan(10, last=0)], "with 0 last tokens"),
        ([ReaderPlan(10, last=16), ReaderPlan(10, last=17)], "two readers are named 'read-4[0-9]'"),
    ],
)
def test_what_no_model_can_be_read_by_is_refused(plans, message):
    with pytest.raises(BuildError, match=message) as refused:
        make_readers(plans, SMOL)
    assert "\n" not in str(refused.value)
    with pytest.raises(BuildError, match="reader"):
        Recipe(readers=tuple(plans)).check(SMOL)


def test_a_build_fits_stores_and_measures_the_readers(tmp_path):
    model = tiny_model()
    rows = BuildRows(random_rows(12, (24, 17), seed=1), random_rows(3, (20,)), "a", "b", TEXT)
    plans = (ReaderPlan(2, last=3), ReaderPlan(0.3, last=3, numbers=True, name="mine"))
    artefact = build(model, "tiny", rows, dataclasses.replace(RECIPE, readers=plans))
    artefact.save(tmp_path / "artefact")
    loaded = load_artefact(tmp_path / "artefact")
    assert [one.depth for one in loaded.readers.values()] == [2, 1]
    assert list(loaded.readers)[1] == "mine"
    located = locate(model)
    for depth, sums in sum_moments(located, TEXT.rows, [1, 2]).items():
        maps = solve_maps(located, depth, sums)
        assert torch.equal(loaded.maps[depth].weight, maps.quantised(sums.within).weight)
        assert not torch.equal(loaded.maps[depth].weight, maps.quantised().weight)
    readers = ReaderSet(loaded.readers, loaded.maps, TEXT.kinds)
    measured = measure_readers(located, readers, TEXT.answers, Checkpoint(None, None))
    assert loaded.table.reader_quality == measured.quality
    assert loaded.table.reader_cost == measured.cost
    assert loaded.provenance["readers"]["source"] == "random"
    assert loaded.provenance["readers"]["rows"] == 9


def test_a_build_without_text_for_readers_has_none():
    rows = BuildRows(random_rows(12, (24, 17), seed=1), random_rows(3, (20,)), "a", "b")
    artefact = build(tiny_model(), "tiny", rows, RECIPE)
    assert artefact.readers == {}
    assert "readers" not in artefact.provenance


def test_an_encoder_has_no_readers():
    rows = BuildRows(random_rows(12, (24, 17), seed=1), random_rows(3, (20,)), "a", "b", TEXT)
    assert build(tiny_model("bert"), "tiny", rows, RECIPE).readers == {}


def test_fitted_maps_are_taken_from_the_checkpoint(tmp_path, monkeypatch):
    located, readers = locate(tiny_model()), {"two": PromptReader("two", 2, last=3)}
    expected = fit_readers(located, readers, TEXT, Checkpoint(tmp_path / "run", "id"))
    monkeypatch.setattr("pruners.builder.readers.sum_moments", None)
    found = fit_readers(located, readers, TEXT, Checkpoint(tmp_path / "run", "id"))
    assert torch.equal(found.maps[2].weight, expected.maps[2].weight)
    assert found.quality == expected.quality


def test_too_little_held_out_text_leaves_readers_unmeasured():
    text = dataclasses.replace(TEXT, answers=TEXT.answers[:1])
    readers = {"two": PromptReader("two", 2, last=3)}
    fitted = fit_readers(locate(tiny_model()), readers, text, Checkpoint(None, None))
    assert fitted.maps.keys() == {2}
    assert fitted.quality == {}


def test_maps_are_trained_as_often_as_the_text_says(monkeypatch):
    located = locate(tiny_model())
    readers = {"two": PromptReader("two", 2, last=3), "one": PromptReader("one", 1, last=3)}
    ridge = fit_readers(located, readers, TEXT, Checkpoint(None, None))
    asked = []

    def train(located, maps, pairs, readers, options, progress):
        asked.append((maps.depth, [one.name for one in readers], options.epochs, len(pairs)))
        return KVMaps(maps.depth, 2 * maps.weight)

    monkeypatch.setattr("pruners.builder.readers.distil_maps", train)
    text = dataclasses.replace(TEXT, epochs=3)
    trained = fit_readers(located, readers, text, Checkpoint(None, None))
    assert sorted(asked) == [(1, ["one"], 3, len(TEXT.rows)), (2, ["two"], 3, len(TEXT.rows))]
    for depth, maps in trained.maps.items():
        torch.testing.assert_close(maps.weight, 2 * ridge.maps[depth].weight)


def test_maps_are_trained_on_given_pairs_and_depths_are_kept_when_interrupted(
    tmp_path, monkeypatch
):
    located = locate(tiny_model())
    readers = {"two": PromptReader("two", 2, last=3), "one": PromptReader("one", 1, last=3)}
    pairs = cut_answers(random_rows(7, (60,), seed=8))
    text = dataclasses.replace(TEXT, epochs=1, pairs=pairs)
    expected = fit_readers(located, readers, text, Checkpoint(None, None))
    trained, real = [], builder.distil_maps

    def train(located, maps, given, *rest):
        assert given is pairs
        if maps.depth == 2 and trained == [1]:
            trained.append("interrupted")
            raise KeyboardInterrupt
        trained.append(maps.depth)
        return real(located, maps, given, *rest)

    monkeypatch.setattr(builder, "distil_maps", train)
    with pytest.raises(KeyboardInterrupt):
        fit_readers(located, readers, text, Checkpoint(tmp_path / "run", "id"))
    found = fit_readers(located, readers, text, Checkpoint(tmp_path / "run", "id"))
    assert trained == [1, "interrupted", 2]
    for depth, maps in expected.maps.items():
        assert torch.equal(found.maps[depth].weight, maps.weight)
