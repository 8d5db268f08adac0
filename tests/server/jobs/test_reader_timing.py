"""Times of readers beside reading in full, and what a profile takes from the artefact's table."""

from dataclasses import replace

import pytest
import torch

from policies.simulation.reader_profile import ReaderProfile
from pruners.artefact.table import Accuracy, ReaderCost, ReaderQuality
from pruners.support.fingerprint import fingerprint
from server.catalogue import build_catalogue
from server.engine.loading.load import LoadedModel, load_model, load_transformers
from server.jobs import reader_timing
from server.jobs.profile import ProfilingError, _check_readers, _profile_reader
from tests.support.artefacts import artefact_with_readers
from tests.support.tiny import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LoadedModel:
    """A tiny model whose artefact has readers of two depths, one of them with numbers."""
    folder = save_tiny(tmp_path_factory.mktemp("timed") / "tiny")
    source = load_transformers(folder, torch.float32)
    artefact = replace(artefact_with_readers(), fingerprint=fingerprint(source))
    return load_model(folder, "tiny", "fp32", artefact)


def test_the_time_of_a_reader_is_a_ratio_to_reading_in_full_beside_it(model, monkeypatch):
    """The machine gets slower with each measurement, which no ratio shows."""
    slowdown = iter(range(10, 10_000))
    alone = {"read-80": 0.8, "read-60": 0.6, "read-50": 0.5, None: 1.0}

    def timer(model, decoder, reader, tokens):
        share = alone[reader.name if reader else None]
        return lambda: next(slowdown) // 4 * share * tokens

    monkeypatch.setattr(reader_timing, "reading_timer", timer)
    found = reader_timing.time_readers(model, (16, 64, 10**6), repeats=31)
    assert found.keys() == model.readers.keys()
    for name, by_tokens in found.items():
        assert by_tokens.keys() == {16, 64}, "no longer than the model's context"
        assert list(by_tokens.values()) == pytest.approx([alone[name]] * 2, rel=0.02)


def test_a_prompt_is_read_by_steps_up_to_its_first_token(model, monkeypatch):
    monkeypatch.setattr(reader_timing, "TOKEN_ID", 7)
    decoder = reader_timing.open_zeroed_decoder(model, 400)
    segments, forward = [], decoder.forward

    def recorded(given):
        segments.extend(given)
        return forward(given)

    monkeypatch.setattr(decoder, "forward", recorded)
    reader = model.readers["read-50"]
    assert reader_timing.reading_timer(model, decoder, reader, 300)() > 0
    assert [len(one.tokens) for one in segments] == [256, 44]
    assert [one.outputs for one in segments] == [0, 1]
    marks = segments[0].shallow + segments[1].shallow
    assert marks == [4 + 24 <= place < 300 - reader.last for place in range(300)]
    segments.clear()
    assert reader_timing.reading_timer(model, decoder, None, 300)() > 0
    assert [one.shallow for one in segments] == [None, None]
    assert decoder.cache.arena.used == 0


def test_as_many_numbers_are_read_in_full_as_the_table_s_share_says(model):
    reader, shape = model.readers["read-60"], model.weights.shape
    always = 4 + 24 + reader.last
    share = reader.cost(shape, 512, always + (512 - always) // 4)  # a quarter are numbers
    table = replace(model.artefact.table, reader_cost={"read-60": ReaderCost(share, 1, 1)})
    measured = replace(model, artefact=replace(model.artefact, table=table))
    marks = reader_timing.typical_shallow(measured, reader, 1000)
    assert sum(marks) == pytest.approx(0.75 * (1000 - always), abs=2)
    assert sum(marks[:500]) == pytest.approx(0.75 * 472, abs=2), "evenly"
    assert sum(reader_timing.typical_shallow(model, reader, 1000)) == 1000 - always


def test_a_profile_says_of_a_reader_what_the_table_says(model):
    with pytest.raises(ProfilingError, match="loss of reader read-60 was never measured"):
        _check_readers(model)
    quality = {"0-256": ReaderQuality(0.02, 0.01, 0.9, 8), "256-1024": ReaderQuality(0.04, 0, 1, 8)}
    overall = {"all": ReaderQuality(0.3, 0.0, 1.0, 9)}
    table = replace(
        model.artefact.table,
        reader_quality={"read-80": {**quality, **overall}, "read-60": quality, "read-50": overall},
        reading_tasks={"passkey-200": {"read-80": Accuracy(10, 0.9, None, 0.1, 1.0)}},
    )
    measured = replace(model, artefact=replace(model.artefact, table=table))
    _check_readers(measured)
    catalogue = build_catalogue(measured, (), None)
    found = [_profile_reader(catalogue, measured, name, {64: 0.7}) for name in measured.readers]
    assert found[0] == ReaderProfile(
        "read-80", {64: 0.7}, {255: 0.02, 1023: 0.04}, {"passkey-200": 0.9}
    )
    assert found[1].loss == {255: 0.02, 1023: 0.04}
    assert found[2].loss == {1: 0.3}
    assert found[2].losses([1, 4000]).tolist() == [0.3, 0.3]
