"""Readers and maps of an artefact: what is saved is what is loaded, everything else is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruners.artefact.folder import ARTEFACT, ArtefactError, load_artefact
from pruners.artefact.stored_readers import readers_digest
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.support.files import check_folder
from tests.support.artefacts import (
    artefact_with_readers,
    edit_json,
    edit_maps,
    example_artefact,
    truncate,
)


@pytest.fixture
def read_folder(tmp_path: Path) -> Path:
    """The folder of an artefact with readers, which a test may damage."""
    artefact_with_readers().save(tmp_path / "artefact")
    return tmp_path / "artefact"


def test_readers_and_maps_are_loaded_as_they_were_saved(read_folder: Path):
    saved, loaded = artefact_with_readers(), load_artefact(read_folder)
    assert loaded.readers == saved.readers
    assert loaded.table == saved.table
    assert loaded.maps.keys() == saved.maps.keys() == {1, 2}
    for depth, maps in saved.maps.items():
        assert torch.equal(loaded.maps[depth].weight, maps.weight)
    check_folder(read_folder, ARTEFACT)


def test_saving_what_was_loaded_gives_the_same_bytes(read_folder: Path, tmp_path: Path):
    loaded = load_artefact(read_folder)
    loaded.save(tmp_path / "again")
    for name in ("readers.json", "readers.safetensors", "table.json", "variants.json"):
        assert (read_folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_an_artefact_without_readers_has_no_files_and_no_parts_of_them(folder: Path):
    loaded = load_artefact(folder)
    assert loaded.readers == {}
    assert loaded.maps == {}
    assert not list(folder.glob("readers*"))
    assert "read" not in (folder / "table.json").read_text()


def test_the_identity_is_of_readers_and_maps_too(read_folder: Path):
    artefact = artefact_with_readers()
    found = {artefact.identity(), example_artefact().identity()}
    other = artefact.maps | {1: KVMaps(1, artefact.maps[1].weight.flip(0))}
    found.add(replace(artefact, maps=other).identity())
    changed = artefact.readers | {"read-80": PromptReader("read-80", 2, last=17)}
    found.add(replace(artefact, readers=changed).identity())
    assert len(found) == 4
    loaded = load_artefact(read_folder)
    assert readers_digest(loaded.readers, loaded.maps) == readers_digest(
        artefact.readers, artefact.maps
    )


def in_readers(change):
    """Return a damage that changes the first reader of `readers.json`."""
    return lambda folder: edit_json(folder / "readers.json", lambda v: change(v["readers"][0]))


def in_maps(change, **binding):
    return lambda folder: edit_maps(folder, change, **binding)


def make_infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["2.scales"][0, 3] = torch.inf


def cut_a_layer(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: tensors[name][:1].clone() for name in tensors if name.startswith("1.")})


ERRORS = {
    "no maps": (lambda f: (f / "readers.safetensors").unlink(), "readers.safetensors is missing"),
    "no readers": (lambda f: (f / "readers.json").unlink(), "readers.json"),
    "truncated": (lambda f: truncate(f / "readers.safetensors"), "readers.safetensors: "),
    "truncated json": (lambda f: truncate(f / "readers.json"), "readers.json"),
    "not an object": (lambda f: (f / "readers.json").write_text("[]"), "readers.json"),
    "schema": (
        lambda f: edit_json(f / "readers.json", lambda v: v.update(schema=9)),
        "schema 9, this version reads 2",
    ),
    "another model's": (
        lambda f: edit_json(f / "readers.json", lambda v: v.update(fingerprint="ff")),
        "readers.json belongs to another model",
    ),
    "another model's maps": (
        in_maps(lambda t: None, fingerprint="ff"),
        "readers.safetensors belongs to another model",
    ),
    "attended": (in_readers(lambda r: r.update(attended=0.25)), "attended"),
    "a depth without maps": (
        lambda f: edit_maps(f, lambda t: [t.pop(n) for n in list(t) if n.startswith("2.")]),
        "reader 'read-80' has no maps of depth 2",
    ),
    "all layers": (in_readers(lambda r: r.update(depth=3)), "'read-80' has no maps of depth 3"),
    "too deep": (in_readers(lambda r: r.update(depth=4)), "read-80: depth 4 of 3 layers"),
    "maps of nobody": (
        in_readers(lambda r: r.update(depth=1)),
        "the maps of depth 2 are of no reader",
    ),
    "half of the maps": (in_maps(lambda t: t.pop("2.scales")), "have no '2.scales'"),
    "too few layers": (in_maps(cut_a_layer), "depth 1 are (1, 64, 65), not (2, 64, 65)"),
    "not finite": (in_maps(make_infinite), "depth 2 are not finite"),
    "full": (in_readers(lambda r: r.update(name="full")), "'full' cannot be the name of a reader"),
    "base": (in_readers(lambda r: r.update(name="base")), "'base' cannot be the name of a reader"),
    "refuse": (in_readers(lambda r: r.update(name="refuse")), "'refuse' cannot be the name"),
    "a variant": (in_readers(lambda r: r.update(name="depth-2")), "'depth-2' cannot be the name"),
    "a space": (in_readers(lambda r: r.update(name="a b")), "'a b' cannot be the name"),
    "twice": (in_readers(lambda r: r.update(name="read-60")), "two readers are named 'read-60'"),
    "quality of nobody": (
        lambda f: edit_json(
            f / "table.json", lambda v: v["reader_quality"].update(x=v["reader_quality"]["read-80"])
        ),
        "reader_quality.x is of no reader",
    ),
    "no interval": (
        lambda f: edit_json(
            f / "table.json",
            lambda v: v["reader_quality"]["read-80"]["all"].update(half_width=-1.0),
        ),
        "reader_quality.read-80.all.half_width",
    ),
    "no share": (
        lambda f: edit_json(
            f / "table.json", lambda v: v["reader_cost"]["read-80"].update(share=0.0)
        ),
        "reader_cost.read-80.share",
    ),
}


@pytest.mark.parametrize(("damage", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_damage_is_refused_in_one_line(read_folder: Path, damage, message):
    damage(read_folder)
    with pytest.raises(ArtefactError) as refused:
        load_artefact(read_folder)
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"artefact {read_folder}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"readers": {"read-80": PromptReader("read-80", 2, attended=0.5)}}, "attended"),
        ({"readers": {"other": PromptReader("read-80", 2)}}, "stored as 'other'"),
        ({"maps": {}}, "no maps"),
        ({"readers": {"full": PromptReader("full", 2)}}, "cannot be the name"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, change, message):
    with pytest.raises(ValueError, match=message):
        replace(artefact_with_readers(), **change).save(tmp_path / "artefact")
    assert list(tmp_path.iterdir()) == []
