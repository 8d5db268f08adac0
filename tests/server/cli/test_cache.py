"""`trimtab cache` says what is there; `trimtab cache clear` removes it and nothing else."""

from pathlib import Path

import pytest

from server.engine.loading.cache_contents import CacheError, cache_entries, clear_cache
from tests.support.commands import one_line, trimtab


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    for folder, name, size in (
        ("models", "mine/a.gguf", 3_000_000),
        ("gguf", "mine-1/config.json", 1000),
        ("packed", "mine-1.packed", 2_000_000),
        ("text", "abc/rows", 10),
        ("artefacts", "def/variants.json", 20),
    ):
        path = tmp_path / "cache" / folder / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"0" * size)
        (tmp_path / "cache" / folder / ".lock").write_text("")
        (tmp_path / "cache" / folder / "some.lock").write_text("")
    return tmp_path / "cache"


def names() -> set[str]:
    return {entry.name for entry in cache_entries()}


def test_everything_is_listed_with_its_size(root: Path):
    found = {entry.name: (entry.what, entry.size) for entry in cache_entries()}
    assert found == {
        "models/mine": ("model", 3_000_000),
        "gguf/mine-1": ("what a GGUF file says of itself", 1000),
        "packed/mine-1.packed": ("packed weights", 2_000_000),
        "text/abc": ("text that a base has written", 10),
        "artefacts/def": ("artefact, learned or unpacked", 20),
    }


def test_without_a_name_only_what_is_made_again_is_removed(root: Path):
    assert set(clear_cache([])) == {"gguf/mine-1", "packed/mine-1.packed"}
    assert names() == {"models/mine", "text/abc", "artefacts/def"}


def test_names_are_those_of_the_list(root: Path):
    clear_cache(["models/mine"])
    assert "models/mine" not in names()
    for name in ("mine", "../cache/models", "models", "packed/.lock"):
        with pytest.raises(CacheError, match="is called"):
            clear_cache([name])


def test_an_empty_cache_is_no_error(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "none"))
    assert cache_entries() == clear_cache([]) == []


@pytest.mark.slow
def test_the_command(root: Path):
    done = trimtab("cache")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["name", "what", "MB", "last", "used"]
    assert any(line.startswith("packed/mine-1.packed") and " 2.0 " in line for line in lines)
    assert lines[-1] == f"5.0 MB in {root}"
    one_line(trimtab("cache", "clear", "packed/none"), "packed/none")
    done = trimtab("cache", "clear", "packed/mine-1.packed")
    assert done.stdout == "removed packed/mine-1.packed\n"
    assert not (root / "packed" / "mine-1.packed").exists()
