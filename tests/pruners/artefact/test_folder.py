from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pruners.artefact.folder import ArtefactError, load_artefact
from pruners.artefact.table import Quality, TableError
from pruners.variant import Block
from tests.support.artefacts import example_artefact


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Check that tensors are equal; low ranks, stored as int8, within half a step of 127."""
    assert one.shape == other.shape
    step = other.float().abs().max() / 127 if one.dim() == 2 and 4 in one.shape else 0.0
    if one.numel():
        assert (one.float() - other.float()).abs().max() <= 0.51 * step


def test_round_trip(folder: Path):
    saved, loaded = example_artefact(), load_artefact(folder)
    for name in ("model_name", "fingerprint", "shape", "variants", "table", "provenance"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert torch.equal(loaded.order.ffn, saved.order.ffn)
    assert torch.equal(loaded.order.kv, saved.order.kv)
    assert loaded.variants[2].name == "depth-2-ffn-50"
    assert loaded.corrections.keys() == saved.corrections.keys()
    for variant, corrections in saved.corrections.items():
        assert loaded.corrections[variant].keys() == corrections.keys()
        for block, correction in corrections.items():
            again = loaded.corrections[variant][block]
            assert type(again) is type(correction)
            for one, other in zip(correction.tensors(), again.tensors(), strict=True):
                assert_close(one, other)


def test_what_variants_share_is_kept_and_loaded_once(folder: Path):
    artefact = example_artefact()
    first, second = artefact.corrections.values()
    block = Block(0, "mlp")
    second[block] = first[block]
    artefact.save(folder)
    with safe_open(folder / "corrections.safetensors", framework="pt") as file:
        kept = [key for key in file.keys() if key.endswith("/0.mlp.up")]  # noqa: SIM118
    assert len(kept) == 1
    one, other = load_artefact(folder).corrections.values()
    assert one[block].up is other[block].up
    assert_close(one[block].up, first[block].up)


def test_saving_again_replaces_and_leaves_nothing_behind(folder: Path):
    example_artefact().save(folder)
    assert load_artefact(folder).model_name == "tiny"
    assert [path.name for path in folder.parent.iterdir()] == ["artefact"]


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path):
    sound = example_artefact()
    quality = sound.table.quality | {"ffn-50": Quality(float("nan"), 0.5, 3.0)}
    with pytest.raises(TableError, match=r"quality\.ffn-50\.kl"):
        replace(sound, table=replace(sound.table, quality=quality)).save(tmp_path / "artefact")
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(ArtefactError, match="is missing"):
        load_artefact(tmp_path / "nothing")
