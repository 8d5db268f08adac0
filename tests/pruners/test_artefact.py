import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruners.architecture import Shape
from pruners.artefact import Artefact, ArtefactError, load_artefact
from pruners.measure.table import Accuracy, Cost, Quality, Table
from pruners.recovery import Entry, LowRank, Materialised
from pruners.variant import Block, VariantSpec, both, depth_spec, width_spec

PARTS = ("bias", "up", "down")
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
        corrections={v.name: corrections_of(v, generator) for v in (width, variants[2])},
        table=Table(
            evaluation={"hash": "abc", "tokens": 60},
            quality={v.name: Quality(0.5 + i, 0.7, 40.25) for i, v in enumerate(variants)},
            kv_quality={64: Quality(0.1, 0.9, 30.5)},
            cost={v.name: Cost(1000, 0.5, 0.75, 2000, 8) for v in variants},
            eviction={"snap": {"50%": Quality(0.2, 0.8, 31.0)}},
            tasks={"arc": {"base": Accuracy(10, 0.5, None, 0.1, 1.0)}},
            speed={"0123": {"decode": {"base": {"1x128": 0.25}}}},
            samples={"How?": {"base": "So."}},
        ),
        provenance={"recipe": {"seed": 0}},
    )


def corrections_of(spec: VariantSpec, generator: torch.Generator):
    """A low rank on each narrowed `down`, a whole one on the last; exact in bfloat16."""

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).bfloat16()

    found = {
        Block(layer, "mlp"): LowRank(draw(64), draw(64, 4), draw(4, width))
        for layer, width in enumerate(spec.ffn)
        if width
    }
    found[Block(2, "mlp")] = Materialised(draw(64), draw(64, spec.ffn[2]))
    groups = spec.kv_groups[0]
    entry = Entry(draw(64), draw(groups * 4 * 16, 4), draw(4, 64))  # two queries, a key, a value
    found[Block(0, "attention")] = LowRank(draw(64), draw(64, 0), draw(0, groups * 32), entry)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    example().save(tmp_path / "artefact")
    return tmp_path / "artefact"


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Vectors and whole matrices come back as they were, low ranks within half a step of 127."""
    assert one.shape == other.shape
    step = other.float().abs().max() / 127 if one.dim() == 2 and 4 in one.shape else 0.0
    if one.numel():
        assert (one.float() - other.float()).abs().max() <= 0.51 * step


def test_round_trip(folder: Path):
    saved, loaded = example(), load_artefact(folder)
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
                close(one, other)


def test_what_variants_share_is_kept_and_loaded_once(folder: Path):
    artefact = example()
    first, second = artefact.corrections.values()
    block = Block(0, "mlp")
    second[block] = first[block]
    artefact.save(folder)
    with safe_open(folder / "corrections.safetensors", framework="pt") as file:
        kept = [key for key in file.keys() if key.endswith("/0.mlp.up")]  # noqa: SIM118
    assert len(kept) == 1
    one, other = load_artefact(folder).corrections.values()
    assert one[block].up is other[block].up
    close(one[block].up, first[block].up)


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


def rewrite(folder: Path, change, **binding: str) -> None:
    """The corrections changed, under their own header or another one."""
    path = folder / "corrections.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {**header, **binding})


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["ffn-50/0.mlp.bias"][3] = torch.nan


def poison_a_scale(tensors: dict[str, torch.Tensor]) -> None:
    tensors["ffn-50/0.mlp.up.scale"][0, 1] = torch.inf


DAMAGE = {
    "no corrections": lambda f: (f / "corrections.safetensors").unlink(),
    "truncated corrections": lambda f: truncate(f / "corrections.safetensors"),
    "another model's": lambda f: rewrite(f, lambda t: None, fingerprint="fedcba"),
    "another order's": lambda f: rewrite(f, lambda t: None, order="fedcba"),
    "not a number": lambda f: rewrite(f, poison),
    "an infinite scale": lambda f: rewrite(f, poison_a_scale),
    "codes without a scale": lambda f: rewrite(f, lambda t: t.pop("ffn-50/0.mlp.up.scale")),
    "half a correction": lambda f: rewrite(f, lambda t: t.pop("ffn-50/0.mlp.up")),
    "of another width": lambda f: rewrite(
        f, lambda t: t.update({"ffn-50/0.mlp.down": torch.zeros(4, 47)})
    ),
    "an entry of another width": lambda f: rewrite(
        f, lambda t: t.update({"ffn-50/0.attention.entry.up": torch.zeros(64, 4)})
    ),
    "half an entry": lambda f: rewrite(f, lambda t: t.pop("ffn-50/0.attention.entry.norm")),
    "of no variant": lambda f: rewrite(f, lambda t: t.update({"x/0.mlp.up": torch.zeros(64, 4)})),
    "shared with nobody": lambda f: edit(
        f / "variants.json", lambda v: v["corrected"]["ffn-50"].update({"0.attention": "x"})
    ),
    "shared by no part": lambda f: edit(
        f / "variants.json", lambda v: v["corrected"]["ffn-50"].update({"nothing": "ffn-50"})
    ),
    "of no layer": lambda f: rewrite(
        f,
        lambda t: t.update({f"ffn-50/7.mlp.{n}": t[f"ffn-50/0.mlp.{n}"].clone() for n in PARTS}),
    ),
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
