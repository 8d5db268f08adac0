"""Test saved slices: loading, damage, and what they may replace."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from pruners.architecture import UnsupportedModelError, locate
from pruners.realization.order import identity_order
from pruners.realization.slice import SliceError, slice_model
from pruners.realization.slice_folder import MANIFEST, WEIGHTS, load_slice, save_slice
from pruners.support.files import TargetError
from pruners.variant import VariantSpec, base_spec
from tests.support.models import logits, random_rows, tiny_model

ROWS = random_rows(2, (24,))
UNIFORM = VariantSpec("narrow", (2, 2, 2), (32, 32, 32))
MIXED = VariantSpec("mixed", (0, 1, 2), (96, 32, 0))


def save_tiny_slice(folder: Path, spec: VariantSpec = MIXED) -> nn.Module:
    located = locate(tiny_model())
    sliced = slice_model(located, spec, identity_order(located.shape))
    save_slice(sliced, spec, folder)
    return sliced


@pytest.mark.parametrize("spec", [UNIFORM, MIXED])
def test_the_loader_reads_both_kinds(tmp_path: Path, spec: VariantSpec):
    sliced = save_tiny_slice(tmp_path / "slice", spec)
    loaded = load_slice(tmp_path / "slice")
    assert torch.equal(logits(loaded, ROWS), logits(sliced, ROWS))
    assert not loaded.training
    assert [path.name for path in tmp_path.iterdir()] == ["slice"]


def test_a_loaded_slice_can_be_saved_again(tmp_path: Path):
    sliced = save_tiny_slice(tmp_path / "first")
    save_slice(load_slice(tmp_path / "first"), MIXED, tmp_path / "second")
    assert torch.equal(logits(load_slice(tmp_path / "second"), ROWS), logits(sliced, ROWS))


def test_half_precision_is_kept(tmp_path: Path):
    located = locate(tiny_model().to(torch.bfloat16))
    save_slice(
        slice_model(located, MIXED, identity_order(located.shape)), MIXED, tmp_path / "slice"
    )
    assert {p.dtype for p in load_slice(tmp_path / "slice").parameters()} == {torch.bfloat16}


def test_from_pretrained_alone_fails_instead_of_filling_in_weights(tmp_path: Path):
    save_tiny_slice(tmp_path / "slice")
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "slice")


def test_heads_that_do_not_divide_the_hidden_size_are_reloaded_by_the_loader(tmp_path: Path):
    located = locate(tiny_model("llama-mha"))
    spec = VariantSpec("three-heads", (3, 3, 3), (96, 96, 96))  # 64 is no multiple of 3
    sliced = slice_model(located, spec, identity_order(located.shape))
    save_slice(sliced, spec, tmp_path / "slice")
    assert (tmp_path / "slice" / WEIGHTS).exists()
    assert torch.equal(logits(load_slice(tmp_path / "slice"), ROWS), logits(sliced, ROWS))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def swap_weights(folder: Path, spec: VariantSpec, name: str) -> None:
    located = locate(tiny_model(seed=1))
    other = folder.parent / "other"
    save_slice(slice_model(located, spec, identity_order(located.shape)), spec, other)
    (other / name).replace(folder / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "damage", "message"),
    [
        (MIXED, lambda f: (f / MANIFEST).unlink(), "is no slice: it has no trimtab_slice.json"),
        (MIXED, lambda f: truncate(f / MANIFEST), "is damaged"),
        (MIXED, lambda f: edit(f / MANIFEST, schema=7), "has schema 7, this version reads 2"),
        (MIXED, lambda f: (f / MANIFEST).write_text("[]"), "is damaged"),
        (MIXED, lambda f: edit(f / MANIFEST, **{"class": "Trainer"}), "names no loader or model"),
        (MIXED, lambda f: edit(f / MANIFEST, **{"class": "BertForMaskedLM"}), "is damaged"),
        (MIXED, lambda f: edit(f / MANIFEST, ffn=[96, 48, 0]), "do not belong together"),
        (MIXED, lambda f: edit(f / MANIFEST, ffn=[96, 480, 0]), "ffn outside 0..96"),
        (MIXED, lambda f: edit(f / MANIFEST, ffn=3), "is damaged"),
        (MIXED, lambda f: (f / WEIGHTS).unlink(), "trimtab_slice.safetensors is missing"),
        (MIXED, lambda f: truncate(f / WEIGHTS), "is damaged"),
        (MIXED, lambda f: (f / "config.json").unlink(), "is damaged"),
        (MIXED, lambda f: truncate(f / "config.json"), "is damaged"),
        (MIXED, lambda f: swap_weights(f, MIXED, WEIGHTS), "not those that were saved"),
        (UNIFORM, lambda f: truncate(f / "model.safetensors"), "is damaged"),
        (UNIFORM, lambda f: (f / "model.safetensors").unlink(), "is damaged"),
        (UNIFORM, lambda f: edit(f / "config.json", intermediate_size=64), "is damaged"),
        (UNIFORM, lambda f: swap_weights(f, UNIFORM, "model.safetensors"), "that were saved"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path, spec, damage, message: str):
    save_tiny_slice(tmp_path / "slice", spec)
    damage(tmp_path / "slice")
    with pytest.raises(SliceError, match=message) as refused:
        load_slice(tmp_path / "slice")
    assert "\n" not in str(refused.value)


def test_only_a_slice_is_replaced(tmp_path: Path):
    save_tiny_slice(tmp_path / "slice", UNIFORM)
    sliced = save_tiny_slice(tmp_path / "slice", MIXED)
    assert torch.equal(logits(load_slice(tmp_path / "slice"), ROWS), logits(sliced, ROWS))
    with pytest.raises(TargetError, match="will not be replaced"):
        save_tiny_slice(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["slice"]


def test_a_model_that_does_not_fit_the_spec_is_refused(tmp_path: Path):
    located = locate(tiny_model())
    with pytest.raises(SliceError, match="not the slice that variant 'mixed' describes"):
        save_slice(tiny_model(), MIXED, tmp_path / "slice")
    with pytest.raises(SliceError, match="leaves no layer"):
        slice_model(located, VariantSpec("none", (0,) * 3, (0,) * 3), identity_order(located.shape))
    assert not (tmp_path / "slice").exists()


def test_modules_and_layers_that_cannot_be_cut_are_refused():
    bound = locate(tiny_model("gpt2", scale_attn_by_inverse_layer_idx=True))
    shallow = VariantSpec("shallow", (4, 0, 4), (96, 0, 96))
    with pytest.raises(UnsupportedModelError, match="layers cannot move up"):
        slice_model(bound, shallow, identity_order(bound.shape))

    class Packed(nn.Linear):
        pass

    model = tiny_model()
    model.model.layers[0].mlp.down_proj.__class__ = Packed
    with pytest.raises(UnsupportedModelError, match="weights of kind Packed"):
        slice_model(locate(model), UNIFORM, identity_order(locate(model).shape))


def test_the_base_as_a_slice_is_the_base(tmp_path: Path):
    model = tiny_model()
    spec = base_spec(locate(model).shape)
    sliced = slice_model(locate(model), spec, identity_order(locate(model).shape))
    assert torch.equal(logits(sliced, ROWS), logits(model, ROWS))
    save_slice(sliced, spec, tmp_path / "slice")
    assert not (tmp_path / "slice" / WEIGHTS).exists()
