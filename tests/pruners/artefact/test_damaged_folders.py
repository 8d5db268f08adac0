from pathlib import Path

import pytest
import torch

from pruners.artefact.folder import ArtefactError, load_artefact
from tests.support.artefacts import edit_corrections, edit_json, edit_order, truncate

PARTS = ("bias", "up", "down")


def repeat_a_neuron(folder: Path) -> None:
    edit_order(folder, lambda t: t["ffn_order"][1].__setitem__(0, t["ffn_order"][1, 1]))


def make_a_bias_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["ffn-50/0.mlp.bias"][3] = torch.nan


def make_a_scale_infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["ffn-50/0.mlp.up.scale"][0, 1] = torch.inf


DAMAGE = {
    "no corrections": lambda f: (f / "corrections.safetensors").unlink(),
    "truncated corrections": lambda f: truncate(f / "corrections.safetensors"),
    "another model's": lambda f: edit_corrections(f, lambda t: None, fingerprint="fedcba"),
    "another order's": lambda f: edit_corrections(f, lambda t: None, order="fedcba"),
    "not a number": lambda f: edit_corrections(f, make_a_bias_nan),
    "an infinite scale": lambda f: edit_corrections(f, make_a_scale_infinite),
    "codes without a scale": lambda f: edit_corrections(
        f, lambda t: t.pop("ffn-50/0.mlp.up.scale")
    ),
    "half a correction": lambda f: edit_corrections(f, lambda t: t.pop("ffn-50/0.mlp.up")),
    "of another width": lambda f: edit_corrections(
        f, lambda t: t.update({"ffn-50/0.mlp.down": torch.zeros(4, 47)})
    ),
    "an entry of another width": lambda f: edit_corrections(
        f, lambda t: t.update({"ffn-50/0.attention.entry.up": torch.zeros(64, 4)})
    ),
    "half an entry": lambda f: edit_corrections(
        f, lambda t: t.pop("ffn-50/0.attention.entry.norm")
    ),
    "of no variant": lambda f: edit_corrections(
        f, lambda t: t.update({"x/0.mlp.up": torch.zeros(64, 4)})
    ),
    "shared with nobody": lambda f: edit_json(
        f / "variants.json", lambda v: v["corrected"]["ffn-50"].update({"0.attention": "x"})
    ),
    "shared by no part": lambda f: edit_json(
        f / "variants.json", lambda v: v["corrected"]["ffn-50"].update({"nothing": "ffn-50"})
    ),
    "of no layer": lambda f: edit_corrections(
        f,
        lambda t: t.update({f"ffn-50/7.mlp.{n}": t[f"ffn-50/0.mlp.{n}"].clone() for n in PARTS}),
    ),
    "missing": lambda f: (f / "table.json").unlink(),
    "truncated json": lambda f: truncate(f / "variants.json"),
    "truncated tensors": lambda f: truncate(f / "order.safetensors"),
    "not text": lambda f: (f / "variants.json").write_bytes(b"\xff\xfe\x00"),
    "not an object": lambda f: (f / "variants.json").write_text("[]"),
    "no model": lambda f: edit_json(f / "variants.json", lambda v: v.pop("model")),
    "model not an object": lambda f: edit_json(f / "variants.json", lambda v: v.update(model=3)),
    "variants not a list": lambda f: edit_json(f / "variants.json", lambda v: v.update(variants=3)),
    "schema": lambda f: edit_json(f / "variants.json", lambda v: v.update(schema=99)),
    "repeated neuron": repeat_a_neuron,
    "too wide": lambda f: edit_json(
        f / "variants.json", lambda v: v["variants"][0].update(ffn=[97, 1, 1])
    ),
    "too few layers": lambda f: edit_json(
        f / "variants.json", lambda v: v["variants"][0].update(ffn=[1, 1])
    ),
    "width is text": lambda f: edit_json(
        f / "variants.json", lambda v: v["variants"][0].update(ffn=["1", 1, 1])
    ),
    "unmeasured": lambda f: edit_json(f / "table.json", lambda v: v["quality"].pop("ffn-50")),
    "quality not an object": lambda f: edit_json(f / "table.json", lambda v: v.update(quality=3)),
    "budget not a number": lambda f: edit_json(
        f / "table.json", lambda v: v["kv_quality"].update(many=v["quality"]["ffn-50"])
    ),
    "other shape": lambda f: edit_json(
        f / "variants.json", lambda v: v["model"]["shape"].update(ffn=128)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_refused_in_one_line(folder: Path, damage):
    damage(folder)
    with pytest.raises(ArtefactError, match="artefact") as refused:
        load_artefact(folder)
    assert "\n" not in str(refused.value)
