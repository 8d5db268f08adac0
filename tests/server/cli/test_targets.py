"""Check that no command deletes what is not its own: it is refused in one line, with code 2."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pruners.builder.recipe import BuildError
from pruners.builder.steps import BuildOptions
from pruners.support.checkpoint import Checkpoint
from pruners.support.files import FolderKind, TargetError, check_folder, replace_folder
from server.cli.main import main
from tests.support.artefacts import example_artefact

NOWHERE = "/no/such/model"
"""A model that is not there: whoever gets as far as loading it says so instead."""
FOLDERS = {
    "build": ["build", "--model", NOWHERE, "--out"],
    "recover": ["recover", "--model", NOWHERE, "--artefact", "ARTEFACT", "--out"],
    "export": ["export", "ffn-50", "--model", NOWHERE, "--artefact", "ARTEFACT", "--out"],
}
FILES = {
    "evaluate": ["evaluate", "--model", "MODEL", "--artefact", "ARTEFACT", "--json"],
    "lm-eval": ["lm-eval", "--tasks", "x", "--model", "MODEL", "--artefact", "ARTEFACT", "--json"],
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A current folder with an artefact, a model's folder, and a home beside it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    example_artefact().save(Path("artefact"))
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    return tmp_path


def run(monkeypatch, capsys, arguments: list[str], target: object) -> str:
    """What the command says on standard error before it ends with code 2."""
    named = {"ARTEFACT": "artefact", "MODEL": "model"}
    words = [named.get(word, word) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["trimtab", *words, str(target)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("trimtab: ")
    assert "\n" not in said
    return said


def everything(folder: Path) -> dict[str, object]:
    return {
        str(path): path.readlink()
        if path.is_symlink()
        else (path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def foreign(folder: Path) -> Path:
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder


def foreign_with_a_like_named_file(folder: Path) -> Path:
    (foreign(folder) / "variants.json").write_text('{"a": 1}')
    (folder / "trimtab_slice.json").write_text("[1]")
    return folder


def with_a_note(folder: Path) -> Path:
    example_artefact().save(folder)
    (folder / "trimtab_slice.json").write_text('{"schema": 2}')
    (folder / "note.txt").write_text("mine")
    return folder


def with_a_link(folder: Path) -> Path:
    example_artefact().save(folder)
    (folder / "table.json").rename(folder.parent / "table.json")
    (folder / "table.json").symlink_to("../table.json")
    return folder


def a_file(path: Path) -> Path:
    path.write_text("text")
    return path


def a_link(path: Path) -> Path:
    path.symlink_to("artefact")
    return path


def below_a_file(path: Path) -> Path:
    return a_file(path) / "below"


def someone_elses_checkpoint(path: Path) -> Path:
    for name in ("build", "recover"):
        foreign(path.parent / f".{path.name}-{name}")
    return path


TARGETS = {
    "foreign": foreign,
    "like-named": foreign_with_a_like_named_file,
    "a note in it": with_a_note,
    "a link in it": with_a_link,
    "a file": a_file,
    "a link": a_link,
    "below a file": below_a_file,
    "current": lambda path: Path("."),
    "above": lambda path: Path(".."),
    "home": lambda path: Path.home(),
    "root": lambda path: Path("/"),
    "name too long": lambda path: Path("x" * 300),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("command", FOLDERS.values(), ids=FOLDERS.keys())
def test_a_folder_with_other_content_is_refused(place, monkeypatch, capsys, command, target):
    path = target(Path("target"))
    before = everything(place)
    assert str(path) in run(monkeypatch, capsys, command, path)
    assert everything(place) == before


@pytest.mark.parametrize("command", ["build", "recover"])
def test_a_checkpoint_folder_with_other_content_is_refused(place, monkeypatch, capsys, command):
    path = someone_elses_checkpoint(Path("target"))
    before = everything(place)
    assert "is no checkpoint" in run(monkeypatch, capsys, FOLDERS[command], path)
    assert everything(place) == before


@pytest.mark.parametrize("command", FOLDERS.values(), ids=FOLDERS.keys())
@pytest.mark.parametrize("target", ["new", "deep/in/new", "empty"])
def test_a_folder_is_not_changed_before_the_work_begins(
    place, monkeypatch, capsys, command, target
):
    Path("empty").mkdir()
    before = everything(place)
    assert "no such model" in run(monkeypatch, capsys, command, target)
    assert everything(place) == before


def json_of_others(path: Path) -> Path:
    path.write_text("# not JSON\n")
    return path


JSON_TARGETS = {
    "a folder": foreign,
    "a folder of ours": lambda path: Path("artefact"),
    "no JSON": json_of_others,
    "a link": a_link,
    "below a file": below_a_file,
    "no such folder": lambda path: path / "none" / "x.json",
    "the artefact's": lambda path: Path("artefact/variants.json"),
    "new in the artefact": lambda path: Path("artefact/new.json"),
    "the model's": lambda path: Path("model/config.json"),
    "a device": lambda path: Path("/dev/null"),
}


@pytest.mark.parametrize("target", JSON_TARGETS.values(), ids=JSON_TARGETS.keys())
@pytest.mark.parametrize("command", FILES.values(), ids=FILES.keys())
def test_a_file_with_other_content_is_refused(place, monkeypatch, capsys, command, target):
    path = target(Path("target"))
    before = everything(place)
    assert str(path if path.parent.is_dir() else path.parent) in run(
        monkeypatch, capsys, command, path
    )
    assert everything(place) == before


@pytest.mark.parametrize("earlier", [False, True], ids=["alone", "after an interrupted one"])
def test_a_refused_build_leaves_nothing_behind(place, tiny_folder, monkeypatch, capsys, earlier):
    """Refused in the middle of its work; what an earlier run has left for another text goes too."""
    checkpoint = Path(".made-build")

    def refuse(*given: object) -> None:
        options = next(one for one in given if isinstance(one, BuildOptions))
        options.checkpoint.save("a part", 1)
        raise BuildError("no")

    monkeypatch.setattr("server.jobs.build.build", refuse)
    Path("text.txt").write_text("the quick brown fox " * 20)
    if earlier:
        Checkpoint(checkpoint, "another text").save("a part", 1)
    before = everything(place)
    words = ["build", "--model", str(tiny_folder), "--text", "text.txt", "--out"]
    monkeypatch.setattr(sys, "argv", ["trimtab", *words, "made"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "trimtab: no"
    kept = {name: body for name, body in before.items() if checkpoint.name not in name}
    assert everything(place) == kept


def test_a_replaced_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    kind = FolderKind("thing", ("mark.json",), ("mark.json",))
    target = tmp_path / "thing"
    for number in (1, 2):
        with replace_folder(target, kind) as staging:
            (staging / "mark.json").write_text(json.dumps({"schema": number}))
    assert json.loads((target / "mark.json").read_text()) == {"schema": 2}
    with pytest.raises(TargetError, match=r"holds late\.txt"), replace_folder(target, kind):
        (target / "late.txt").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]
    (target / "late.txt").unlink()
    (target / ".mark.json-123").touch()  # left by a process that was killed
    check_folder(target, kind)


def ended(checkpoint: Checkpoint, error: Exception) -> None:
    """Notes something in it, and leaves it by an error."""
    with suppress(type(error)), checkpoint:
        checkpoint.save("a", "noted")
        raise error


def test_a_checkpoint_removes_only_its_own(tmp_path):
    folder = tmp_path / ".x-build"
    Checkpoint(folder, "one")
    assert not folder.exists()  # made for the first part
    ended(Checkpoint(folder, "one"), RuntimeError("interrupted"))
    assert Checkpoint(folder, "one").load("a") == "noted"
    assert Checkpoint(folder, "another").load("a") is None
    ended(Checkpoint(folder, "one"), TargetError("refused"))
    assert Checkpoint(folder, "one").load("a") == "noted"  # an earlier run's: kept
    ended(Checkpoint(folder, "another"), TargetError("refused"))
    assert not folder.exists()
    foreign(folder)
    with pytest.raises(TargetError, match=r"holds thesis\.txt and is no checkpoint"):
        Checkpoint(folder, "one")
