import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruners.architecture import Shape
from pruners.artefact import Artefact, ArtefactError, Quality, load_artefact
from pruners.variant import both, depth_spec, width_spec

SHAPE = Shape(layers=3, hidden=64, heads=4, kv_groups=2, head_dim=16, ffn=96, vocab=97)


def example() -> Artefact:
    width, depth = width_spec(SHAPE, 0.5), depth_spec(SHAPE, [1])
    variants = (width, depth, both(depth, width))
    generator = torch.Generator().manual_seed(0)
    return Artefact(
        model_name="tiny",
        fingerprint="0123456789abcdef",
        shape=SHAPE,
        ffn_order=torch.stack([torch.randperm(96, generator=generator).int() for _ in range(3)]),
        kv_order=torch.tensor([[1, 0], [0, 1], [1, 0]], dtype=torch.int32),
        variants=variants,
        quality={v.name: Quality(0.5 + i, 0.7, 40.25) for i, v in enumerate(variants)},
        kv_quality={64: Quality(0.1, 0.9, 30.5)},
        provenance={"recipe": {"seed": 0}},
        evaluation={"hash": "abc", "tokens": 60},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    example().save(tmp_path / "artefact")
    return tmp_path / "artefact"


def test_round_trip(folder: Path):
    saved, loaded = example(), load_artefact(folder)
    for name in (
        "model_name",
        "fingerprint",
        "shape",
        "variants",
        "quality",
        "kv_quality",
        "provenance",
    ):
        assert getattr(loaded, name) == getattr(saved, name)
    assert loaded.evaluation == saved.evaluation
    assert torch.equal(loaded.order.ffn, saved.order.ffn)
    assert torch.equal(loaded.order.kv, saved.order.kv)
    assert loaded.variants[2].name == "depth-2-ffn-50"


def test_saving_again_replaces_and_leaves_nothing_behind(folder: Path):
    example().save(folder)
    assert load_artefact(folder).model_name == "tiny"
    assert [path.name for path in folder.parent.iterdir()] == ["artefact"]


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def repeat_a_neuron(folder: Path) -> None:
    order = load_file(folder / "order.safetensors")
    order["ffn_order"][1, 0] = order["ffn_order"][1, 1]
    save_file(order, folder / "order.safetensors")


DAMAGE = {
    "missing": lambda f: (f / "table.json").unlink(),
    "truncated json": lambda f: truncate(f / "variants.json"),
    "truncated tensors": lambda f: truncate(f / "order.safetensors"),
    "not text": lambda f: (f / "variants.json").write_bytes(b"\xff\xfe\x00"),
    "not an object": lambda f: (f / "variants.json").write_text("[]"),
    "no model": lambda f: edit(f / "variants.json", lambda v: v.pop("model")),
    "model not an object": lambda f: edit(f / "variants.json", lambda v: v.update(model=3)),
    "variants not a list": lambda f: edit(f / "variants.json", lambda v: v.update(variants=3)),
    "schema": lambda f: edit(f / "variants.json", lambda v: v.update(schema=99)),
    "repeated neuron": repeat_a_neuron,
    "too wide": lambda f: edit(
        f / "variants.json", lambda v: v["variants"][0].update(ffn=[97, 1, 1])
    ),
    "too few layers": lambda f: edit(
        f / "variants.json", lambda v: v["variants"][0].update(ffn=[1, 1])
    ),
    "width is text": lambda f: edit(
        f / "variants.json", lambda v: v["variants"][0].update(ffn=["1", 1, 1])
    ),
    "unmeasured": lambda f: edit(f / "table.json", lambda v: v["quality"].pop("ffn-50")),
    "quality not an object": lambda f: edit(f / "table.json", lambda v: v.update(quality=3)),
    "budget not a number": lambda f: edit(
        f / "table.json", lambda v: v["kv_quality"].update(many=v["quality"]["ffn-50"])
    ),
    "other shape": lambda f: edit(
        f / "variants.json", lambda v: v["model"]["shape"].update(ffn=128)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_refused_in_one_line(folder: Path, damage):
    damage(folder)
    with pytest.raises(ArtefactError, match="artefact") as refused:
        load_artefact(folder)
    assert "\n" not in str(refused.value)


def test_refuses_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(ArtefactError, match="is missing"):
        load_artefact(tmp_path / "nothing")
