"""An artefact as one file: packed, unpacked, and refused where an archive is not what it says."""

import json
import zipfile
from dataclasses import replace

import pytest

from pruners.artefact.folder import ArtefactError, load_artefact
from server.engine.loading.artefact_lookup import kept_artefacts, kept_folder
from server.jobs import share_artefact
from server.jobs.share_artefact import ArchiveError, pack_artefact, unpack_artefact
from tests.support.artefacts import artefact_with_readers
from tests.support.commands import one_line, trimtab

FINGERPRINT = "0123456789abcdef" * 2


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An artefact with readers, in a folder; the cache is beside it."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    replace(artefact_with_readers(), fingerprint=FINGERPRINT).save(tmp_path / "artefact")
    return tmp_path / "artefact"


@pytest.fixture
def archive(folder):
    """The same, packed."""
    pack_artefact(folder, folder.parent / "mine.zip")
    return folder.parent / "mine.zip"


def rewrite(archive, change):
    """Write the archive anew from `change(entries)`, a list of (name or ZipInfo, bytes)."""
    with zipfile.ZipFile(archive) as packed:
        entries = [(entry.filename, packed.read(entry)) for entry in packed.infolist()]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry, content in change(entries):
            packed.writestr(entry, content)


def relist(change):
    """Return a change of an archive that changes its list."""

    def rewritten(entries):
        for name, content in entries:
            if name == "pack.json":
                listed = json.loads(content)
                change(listed)
                yield name, json.dumps(listed).encode()
            else:
                yield name, content

    return rewritten


def test_what_is_unpacked_is_what_was_packed(folder, archive):
    artefact, place = unpack_artefact(archive, FINGERPRINT, replace=False)
    assert place == kept_folder(FINGERPRINT)
    assert artefact.identity() == load_artefact(folder).identity()
    for path in folder.iterdir():
        assert (place / path.name).read_bytes() == path.read_bytes()
    left = {path.name for path in place.parent.iterdir()} - {".lock"}
    assert left == {FINGERPRINT}, "nothing else is left"
    assert kept_artefacts("tiny") == [place]
    assert kept_artefacts("other") == []


def test_equal_artefacts_give_equal_archives(folder, archive):
    before = archive.read_bytes()
    pack_artefact(folder, archive)
    assert archive.read_bytes() == before


def test_an_artefact_that_is_there_is_replaced_only_on_demand(archive):
    _, place = unpack_artefact(archive, None, replace=False)
    (place / "table.json").unlink()
    with pytest.raises(ArchiveError, match="give --replace"):
        unpack_artefact(archive, None, replace=False)
    unpack_artefact(archive, None, replace=True)
    assert load_artefact(place).fingerprint == FINGERPRINT


def test_it_must_be_for_the_model(archive):
    with pytest.raises(ArchiveError, match=r"is for 'tiny' .* not for this model"):
        unpack_artefact(archive, "0" * 32, replace=False)
    assert not kept_folder(FINGERPRINT).exists()


@pytest.mark.parametrize(
    "name",
    [
        *("../table.json", "/etc/passwd", "report/../../x.png", "..\\x.png", "report/.hidden.png"),
        *("model.pickle", "report/", "variants.json/x", ".variants.json", "report/a/b.png", "C:x"),
    ],
)
def test_no_other_file_is_written(archive, name):
    def add(entries):
        yield from relist(
            lambda listed: listed["files"].update({name: listed["files"]["table.json"]})
        )(entries)
        yield name, next(content for known, content in entries if known == "table.json")

    rewrite(archive, add)
    with pytest.raises(ArchiveError, match="which no artefact does"):
        unpack_artefact(archive, None, replace=False)
    assert not kept_folder(FINGERPRINT).parent.exists()


def test_a_link_is_written_as_a_plain_file_or_not_at_all(archive):
    """A zip archive marks links in the upper bits of their attributes; they are not looked at."""

    def linked(entries):
        for name, content in entries:
            entry = zipfile.ZipInfo(name)
            if name == "table.json":
                entry.external_attr = 0o120777 << 16
            yield entry, content

    rewrite(archive, linked)
    _, place = unpack_artefact(archive, None, replace=False)
    assert not (place / "table.json").is_symlink()


CHANGES = {
    "fewer files": lambda listed: listed["files"].pop("table.json"),
    "more files": lambda listed: listed["files"].update(
        {"sensitivity.json": listed["files"]["table.json"]}
    ),
    "another hash": lambda listed: listed["files"]["table.json"].update(sha256="0" * 64),
    "a smaller size": lambda listed: listed["files"]["table.json"].update(size=5),
    "a larger size": lambda listed: listed["files"]["table.json"].update(size=10**6),
    "a path for a fingerprint": lambda listed: listed.update(fingerprint="../../elsewhere"),
    "another schema": lambda listed: listed.update(schema=2),
    "a size that is none": lambda listed: listed["files"]["table.json"].update(size=-1),
    "an unknown entry": lambda listed: listed.update(run="me"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_list_is_checked(archive, change):
    rewrite(archive, relist(change))
    with pytest.raises(ArchiveError):
        unpack_artefact(archive, None, replace=False)
    assert not kept_folder(FINGERPRINT).exists()


def test_what_it_unpacks_to_is_bounded(archive, monkeypatch):
    monkeypatch.setattr(share_artefact, "MAX_BYTES", 1000)
    with pytest.raises(ArchiveError, match="too much"):
        unpack_artefact(archive, None, replace=False)


def test_the_artefact_is_of_the_model_that_the_list_names(archive):
    rewrite(archive, relist(lambda listed: listed.update(fingerprint="f" * 32)))
    with pytest.raises(ArtefactError, match="the archive says"):
        unpack_artefact(archive, None, replace=False)
    assert not kept_folder("f" * 32).exists()


def test_a_name_that_stands_there_twice_is_refused(archive):
    with pytest.warns(UserWarning, match="Duplicate"):
        rewrite(archive, lambda entries: [*entries, entries[-1]])
    with pytest.raises(ArchiveError, match="does not hold what"):
        unpack_artefact(archive, None, replace=False)


def test_half_an_archive_is_refused(archive):
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ArchiveError, match="is no packed artefact, or is damaged"):
        unpack_artefact(archive, None, replace=False)


def test_commands_pack_and_unpack(folder):
    target = folder.parent / "shared.zip"
    done = trimtab("artefact", "pack", target, "--artefact", folder)
    assert done.returncode == 0, done.stderr
    assert FINGERPRINT in done.stdout
    done = trimtab("artefact", "unpack", target)
    assert done.returncode == 0, done.stderr
    assert "3 variants and 3 readers of tiny" in done.stdout
    one_line(trimtab("artefact", "unpack", target), "give --replace")
    one_line(trimtab("artefact", "unpack", folder / "table.json"), "is no packed artefact")
    one_line(trimtab("artefact", "pack", folder / "table.json", "--artefact", folder), "no archive")
    one_line(trimtab("artefact", "pack", target, "--model", "unheard"), "no artefact of unheard")
    done = trimtab("artefact", "pack", folder.parent / "again.zip", "--model", "tiny")
    assert done.returncode == 0, "by the model's name, of what is kept"
