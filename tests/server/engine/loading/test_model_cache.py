"""Kept model folders: whole or not there, whatever happens to process, disk or files."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from pruners.architecture import UnsupportedModelError
from server.engine.loading import source
from server.engine.loading.checkpoint import open_checkpoint
from server.engine.loading.gguf_file import describe
from server.engine.loading.model_cache import MANIFEST, cached, remove_stale
from server.engine.loading.source import DEFAULT_MODEL, ModelSourceError, resolve_model
from tests.support.gguf_tiny import write_gguf


class Builder:
    """Fills a folder and counts how often."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.calls = 0
        self.seconds = seconds

    def __call__(self, staging: Path) -> None:
        self.calls += 1
        time.sleep(self.seconds)
        (staging / "model").mkdir()
        (staging / "model" / "config.json").write_text("{}")
        (staging / "model" / "model.safetensors").write_bytes(b"0123456789")


def test_what_is_whole_is_not_built_again(tmp_path: Path):
    build = Builder()
    for _ in range(2):
        folder = cached(tmp_path / "models" / "mine", build)
    assert build.calls == 1
    assert (folder / "model.safetensors").read_bytes() == b"0123456789"
    assert {path.name for path in folder.parent.iterdir()} == {"mine", ".lock"}


def cut(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 5)


def overwrite(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"0123456780")
    os.utime(folder / "model.safetensors", (1, 1))


def remove(folder: Path) -> None:
    (folder / "config.json").unlink()


def spoil(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"schema": 1, "fil')


def unseal(folder: Path) -> None:
    (folder / MANIFEST).unlink()


@pytest.mark.parametrize("damage", [cut, overwrite, remove, spoil, unseal])
def test_what_is_damaged_is_built_again(tmp_path: Path, caplog, damage):
    build = Builder()
    folder = cached(tmp_path / "mine", build)
    damage(folder)
    with caplog.at_level(logging.WARNING):
        cached(folder, build)
    assert build.calls == 2
    assert "again" in caplog.text
    assert (folder / "model.safetensors").read_bytes() == b"0123456789"
    cached(folder, build)
    assert build.calls == 2


def test_a_copy_with_other_times_is_read_once(tmp_path: Path):
    build = Builder()
    folder = cached(tmp_path / "mine", build)
    os.utime(folder / "model.safetensors", (1, 1))
    cached(folder, build)
    assert build.calls == 1
    assert json.loads((folder / MANIFEST).read_text())["files"]["model.safetensors"]["seconds"] == 1


def test_a_failed_build_leaves_nothing(tmp_path: Path):
    def build(staging: Path) -> None:
        (staging / "model").mkdir()
        (staging / "model" / "part").write_bytes(b"0" * 1000)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        cached(tmp_path / "mine", build)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_one_builds_and_the_other_waits(tmp_path: Path, caplog):
    build = Builder(seconds=0.3)
    with caplog.at_level(logging.INFO):
        threads = [threading.Thread(target=cached, args=(tmp_path / "mine", build)) for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert build.calls == 1
    assert "waiting for another process" in caplog.text


def test_what_killed_builds_left_is_removed(tmp_path: Path):
    for name in (".mine-abcd1234", ".other-abcd1234", ".hidden", "mine-abcd1234"):
        (tmp_path / name / "model").mkdir(parents=True)
    with FileLock(tmp_path / ".lock"):
        remove_stale(tmp_path)
        assert (tmp_path / ".mine-abcd1234").exists()
    remove_stale(tmp_path)
    left = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {".hidden", "mine-abcd1234"}


@pytest.mark.slow
def test_a_killed_description_leaves_nothing_after_the_next_start(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    path = write_gguf(tmp_path / "tiny.gguf")
    killed = (
        "import os, signal, sys; from pathlib import Path\n"
        "from server.engine.loading.checkpoint import open_checkpoint\n"
        "from server.engine.loading.gguf_file import describe\n"
        "describe.describe_gguf = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_checkpoint(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(path)], check=False)
    assert done.returncode == -9
    assert any(found.is_dir() for found in (tmp_path / "gguf").glob(".tiny-*"))
    folder = open_checkpoint(path).folder
    assert [found for found in (tmp_path / "gguf").iterdir() if found.is_dir()] == [folder]


def test_a_gguf_file_is_described_again_when_it_changes(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    path = write_gguf(tmp_path / "tiny.gguf")
    first = open_checkpoint(path).folder
    assert open_checkpoint(path).folder == first
    os.utime(path, (1, 1))
    assert open_checkpoint(path).folder != first


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch):
    def full(*rest: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setattr(describe, "describe_gguf", full)
    with pytest.raises(UnsupportedModelError, match="No space left on device"):
        open_checkpoint(write_gguf(tmp_path / "tiny.gguf"))
    assert not any(found.is_dir() for found in (tmp_path / "gguf").iterdir())


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelSourceError, match="Not a directory"):
        resolve_model(DEFAULT_MODEL)
    with pytest.raises(UnsupportedModelError, match="Not a directory"):
        open_checkpoint(path)


def test_a_name_that_no_disk_takes_is_one_line():
    with pytest.raises(ModelSourceError, match="File name too long"):
        resolve_model("/" + "x" * 5000)
    assert source.model_name("x/y") == "x/y"
