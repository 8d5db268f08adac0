"""A fake hub that the hub's own client talks to, with an empty cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine.loading.sources import download
from tests.support.fake_hub import FakeHub, fake_hub

LARGE = bytes(range(256)) * 40
SMALL = b'{"model_type": "llama"}'


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with safetensors in `me/plain`, shards in `me/shards`, and GGUF files in `me/gguf`."""
    index = b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    files = {
        "me/plain": {
            "config.json": SMALL,
            "model.safetensors": LARGE,
            "README.md": b"x",
            "pytorch_model.bin": LARGE,
            "original/params.json": b"{}",
        },
        "me/shards": {
            "config.json": SMALL,
            "model.safetensors.index.json": index,
            "model-1.safetensors": LARGE,
            "model-2.safetensors": LARGE + b"2",
            "consolidated.safetensors": LARGE + b"3",
        },
        "me/gguf": {
            "tiny-Q8_0.gguf": LARGE + b"8",
            "tiny-Q4_K_M.gguf": LARGE + b"4",
            "F16/tiny-F16-00001-of-00002.gguf": LARGE + b"one",
            "F16/tiny-F16-00002-of-00002.gguf": LARGE + b"two",
            "mmproj-tiny-F16.gguf": LARGE,
        },
        "me/pickle": {"config.json": SMALL, "pytorch_model.bin": LARGE},
    }
    with fake_hub(files) as running:
        running.use(monkeypatch, tmp_path / "hub")
        monkeypatch.setattr(download, "_WAIT_SECONDS", 0.0)
        yield running
