"""What a GGUF file says of itself becomes the small files of a model folder."""

import json
import logging
from pathlib import Path

import pytest

from server.engine.loading.gguf_file import open_gguf
from server.engine.loading.gguf_file.describe import describe_gguf
from tests.support.gguf_tiny import write_gguf


def described(folder: Path, **general: object) -> dict[str, object]:
    describe_gguf(open_gguf(write_gguf(folder / "tiny.gguf", **general)), folder / "model")
    return json.loads((folder / "model" / "generation_config.json").read_text())


def test_advice_on_sampling_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    advice = {"temp": 0.5, "top_k": 20, "top_p": 0.75, "min_p": 0.25, "penalty_repeat": 1.5}
    keys = {f"general.sampling.{name}": value for name, value in advice.items()}
    with caplog.at_level(logging.WARNING):
        found = described(tmp_path, **keys, **{"general.sampling.mirostat": 2})
    wanted = [0.5, 20, 0.75, 0.25, 1.5]
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    assert [found[name] for name in names] == wanted
    assert found["do_sample"] is True
    assert "general.sampling.mirostat" in caplog.text


def test_without_advice_the_server_decides(tmp_path: Path):
    assert "do_sample" not in described(tmp_path)
