"""Packed weights that are kept: the same bits, whole or not there, whatever happens."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruners.artefact.folder import ArtefactError
from pruners.support.fingerprint import fingerprint
from server.engine.backends.base import Segment
from server.engine.backends.native import library as native_library
from server.engine.loading import load as loading
from server.engine.loading import packed_cache, packed_file
from server.engine.loading.load import LoadedModel, load_model, load_transformers, open_decoder
from server.engine.loading.memory_estimate import MemoryEstimateError
from tests.support.artefacts import artefact_with_readers
from tests.support.gguf_tiny import PROMPT, write_gguf
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.skipif(
    not native_library.is_available(), reason="the native kernels are not built"
)


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch) -> Path:
    """The folder of packed weights, in which even small ones are kept."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "_WORTH_IT", 0)
    return tmp_path / "cache" / "packed"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    def types(name: str) -> str | None:
        return "Q6_K" if "ffn_down" in name else "Q4_0" if "blk" in name else None

    return write_gguf(tmp_path / "tiny.gguf", types=types)


def logits(model: LoadedModel) -> torch.Tensor:
    decoder = open_decoder(model, 128)
    cache = decoder.cache.open()
    assert cache.reserve(len(PROMPT))
    hidden = decoder.forward([Segment(PROMPT, cache, model.variants["base"])])
    assert decoder.argmax(hidden[-1:]) == decoder.logits(hidden[-1:]).argmax(-1).tolist()
    return decoder.logits(hidden)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != ".lock")


def forbid(monkeypatch) -> None:
    """From now on, nothing may be read of a model but its small files."""

    class Closed:
        def __init__(self, *rest: object) -> None:
            raise AssertionError("the model was opened")

    monkeypatch.setattr(loading, "OpenedModel", Closed)


def test_the_second_start_maps_the_same_bits(kept: Path, gguf: Path, monkeypatch):
    first = load_model(gguf, "tiny")
    assert first.weights.head_screen is not None
    forbid(monkeypatch)
    second = load_model(gguf, "tiny")
    assert len(files(kept)) == 1
    pairs = zip(first.weights.tensors(), second.weights.tensors(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(logits(first), logits(second))
    for name in ("fingerprint", "eos_token_ids", "sampling_defaults", "variants"):
        assert getattr(first, name) == getattr(second, name)
    for name in ("errors", "precision", "shape", "context", "eps", "rope_kinds"):
        assert getattr(first.weights, name) == getattr(second.weights, name)


def test_what_is_packed_already_is_refused_where_it_does_not_fit(gguf: Path, monkeypatch):
    load_model(gguf, "tiny")
    forbid(monkeypatch)
    monkeypatch.setattr("server.engine.loading.memory_check.free_memory", lambda device: 1e6)
    with pytest.raises(MemoryEstimateError, match=r"weights in int4 .* 0\.0 GB are free"):
        load_model(gguf, "tiny")


def test_what_is_mapped_is_what_is_packed_in_memory(kept: Path, gguf: Path, monkeypatch):
    mapped = load_model(gguf, "tiny")
    monkeypatch.setattr(packed_cache, "_WORTH_IT", 1 << 40)
    kept.joinpath(files(kept)[0].name).unlink()
    packed = load_model(gguf, "tiny")
    assert not files(kept)
    assert torch.equal(logits(mapped), logits(packed))


def test_the_context_is_chosen_at_each_start(gguf: Path, monkeypatch):
    load_model(gguf, "tiny", context=64)
    forbid(monkeypatch)
    longer, longest = load_model(gguf, "tiny", context=128), load_model(gguf, "tiny")
    assert (longer.weights.context, longest.weights.context) == (128, 512)
    assert torch.equal(logits(longer), logits(longest))


def test_each_precision_and_order_has_its_own(kept: Path, gguf: Path, monkeypatch):
    base = fingerprint(load_transformers(gguf, torch.float32))
    shape = load_model(gguf, "tiny").weights.shape
    order = torch.arange(shape.ffn).flip(0).repeat(shape.layers, 1)
    groups = torch.arange(shape.kv_groups).repeat(shape.layers, 1)
    artefact = replace(
        artefact_with_readers(), fingerprint=base, shape=shape, ffn_order=order, kv_order=groups
    )
    artefact = replace(artefact, variants=(), corrections={}, readers={}, maps={})
    plain = load_model(gguf, "tiny", "int8")
    ordered = load_model(gguf, "tiny", artefact=artefact)
    assert len(files(kept)) == 3
    forbid(monkeypatch)
    assert torch.equal(logits(load_model(gguf, "tiny", "int8")), logits(plain))
    assert torch.equal(logits(load_model(gguf, "tiny", artefact=artefact)), logits(ordered))
    with pytest.raises(ArtefactError):
        load_model(gguf, "tiny", artefact=replace(artefact, fingerprint="0" * 32))


def test_another_file_in_the_same_place_is_packed_again(kept: Path, gguf: Path):
    load_model(gguf, "tiny")
    load_model(gguf, "tiny", "int8")
    before = files(kept)
    write_gguf(gguf, keys={"rope.freq_base": 5e5}, types=lambda name: "Q8_0")
    os.utime(gguf, (1, 1))
    expected = load_transformers(gguf, torch.float32)(torch.tensor([PROMPT])).logits[0]
    found = logits(load_model(gguf, "tiny"))
    assert float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())
    assert len(before) == 2
    assert len(files(kept)) == 1  # what was packed from the file that was there is gone


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 64)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_another(path: Path) -> None:
    path.write_text("something else, which is longer than the fixed part of the header is")


@pytest.mark.parametrize("damage", [cut, flip, empty, replace_by_another])
def test_what_is_damaged_is_packed_again(kept: Path, gguf: Path, caplog, damage):
    expected = logits(load_model(gguf, "tiny"))
    damage(files(kept)[0])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits(load_model(gguf, "tiny")), expected)
    assert [line.split(":")[0] for line in caplog.messages] == ["packing again"]
    with caplog.at_level(logging.WARNING):
        load_model(gguf, "tiny")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("version", ["FORMAT", "LAYOUT"])
def test_what_another_version_wrote_is_packed_again(gguf: Path, monkeypatch, caplog, version: str):
    load_model(gguf, "tiny")
    monkeypatch.setattr(packed_file, version, 99)
    load_model(gguf, "tiny")
    assert "another version wrote it" in caplog.text


def test_fields_of_another_version_are_noticed(gguf: Path, monkeypatch, caplog):
    load_model(gguf, "tiny")
    monkeypatch.setitem(packed_file._CLASSES, "PackedLayer", packed_file.PackedMatrix)
    with pytest.raises(packed_file.PackedFileError, match="another version"):
        packed_file.map_packed(
            packed_cache.packed_key(gguf, "auto", None).path,
            packed_cache.packed_key(gguf, "auto", None).identity,
        )


def test_a_full_disk_is_one_line_and_serves(kept: Path, gguf: Path, monkeypatch, caplog):
    def full(*rest: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_cache, "write_packed", full)
    assert torch.isfinite(logits(load_model(gguf, "tiny"))).all()
    assert len([line for line in caplog.messages if "No space left" in line]) == 1
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(packed_cache.shutil, "disk_usage", lambda path: usage(1000))
    load_model(gguf, "tiny")
    assert "0.0 GB are free" in caplog.text
    assert not files(kept)


def test_a_cache_that_cannot_be_written_is_one_line_and_serves(tmp_path: Path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "file"))
    assert load_model(save_tiny(tmp_path / "tiny"), "tiny", "int8").weights.precision == "int8"
    assert "packed weights are not kept" in caplog.text


def test_two_starts_at_once_pack_once(kept: Path, gguf: Path, monkeypatch):
    calls = []
    pack = loading._pack

    def slowly(*arguments: object) -> object:
        calls.append(arguments)
        time.sleep(0.3)
        return pack(*arguments)

    monkeypatch.setattr(loading, "_pack", slowly)
    threads = [threading.Thread(target=load_model, args=(gguf, "tiny")) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == len(files(kept)) == 1


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_nothing_after_the_next_start(kept: Path, gguf: Path):
    killed = (
        "import os, signal, sys; from pathlib import Path\n"
        "from server.engine.loading import packed_cache\n"
        "from server.engine.loading.load import load_model\n"
        "packed_cache._WORTH_IT = 0\n"
        "packed_cache.write_packed = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)\n"
        "load_model(Path(sys.argv[1]), 'tiny')"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(gguf)], check=False)
    assert done.returncode == -9
    assert [path.suffix for path in files(kept)] == [".part"]
    load_model(gguf, "tiny")
    assert [path.suffix for path in files(kept)] == [".packed"]
