"""`benchmarks.reading_speed` in small: what it says of compute, and that all readers are timed."""

from dataclasses import replace

import pytest
import torch

from benchmarks.reading_speed import measure
from pruners.support.fingerprint import fingerprint
from server.engine.loading.load import load_model, load_transformers
from tests.support.artefacts import artefact_with_readers
from tests.support.tiny import save_tiny


@pytest.mark.slow
def test_every_reader_is_timed_beside_reading_in_full(tmp_path):
    folder = save_tiny(tmp_path / "tiny")
    source = load_transformers(folder, torch.float32)
    artefact = replace(artefact_with_readers(), fingerprint=fingerprint(source))
    model = load_model(folder, "tiny", "fp32", artefact)
    text = [5 + at % 300 for at in range(300)]
    rows = {(row["tokens"], row["reader"]): row for row in measure(model, text, [60, 300], 2)}
    assert rows.keys() == {(n, r) for n in (60, 300) for r in ("full", *artefact.readers)}
    assert rows[300, "full"]["compute"] == 1
    assert rows[300, "full"]["speed_up"] == 1
    assert rows[300, "read-80"]["in_full"] == 36
    assert rows[300, "read-50"]["compute"] < rows[300, "read-80"]["compute"] < 1
    assert rows[300, "read-50"]["compute"] < rows[60, "read-50"]["compute"]
    for row in rows.values():
        assert row["over_reduction"] == pytest.approx(row["speed_up"] * row["compute"])
        assert row["seconds"] > 0
