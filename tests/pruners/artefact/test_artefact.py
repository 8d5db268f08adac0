import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruners.architecture import Shape
from pruners.artefact.folder import Artefact, ArtefactError, load_artefact
from pruners.artefact.table import Accuracy, Cost, Quality, Table, TableError
from pruners.correction import InputCorrection, LowRankCorrection, RefitCorrection
from pruners.variant import Block, VariantSpec, depth_spec, intersect, width_spec

PARTS = ("bias", "up", "down")
SHAPE = Shape(layers=3, hidden=64, heads=4, kv_groups=2, head_dim=16, ffn=96, vocab=97)


def example() -> Artefact:
    width, depth = width_spec(SHAPE, 0.5), depth_spec(SHAPE, [1])
    variants = (width, depth, intersect(depth, width))
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
        Block(layer, "mlp"): LowRankCorrection(draw(64), draw(64, 4), draw(4, width))
        for layer, width in enumerate(spec.ffn)
        if width
    }
    found[Block(2, "mlp")] = RefitCorrection(draw(64), draw(64, spec.ffn[2]))
    groups = spec.kv_groups[0]
    entry = InputCorrection(
        draw(64), draw(groups * 4 * 16, 4), draw(4, 64)
    )  # two queries, a key, a value
    found[Block(0, "attention")] = LowRankCorrection(
        draw(64), draw(64, 0), draw(0, groups * 32), entry
    )
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


def tables(change):
    return lambda folder: edit(folder / "table.json", change)


def specs(change):
    return lambda folder: edit(folder / "variants.json", change)


def twice_a_key(folder: Path) -> None:
    path = folder / "table.json"
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 3, "schema": 3'))


def reorder(change):
    """Changes the tensors of `order.safetensors`."""

    def damage(folder: Path) -> None:
        order = load_file(folder / "order.safetensors")
        change(order)
        save_file(order, folder / "order.safetensors")

    return damage


def rename(name: str):
    """Calls the first variant so wherever it is named."""

    def damage(folder: Path) -> None:
        edit(folder / "variants.json", lambda v: v["variants"][0].update(name=name))
        edit(folder / "table.json", lambda v: v["quality"].update({name: v["quality"]["ffn-50"]}))

    return damage


NAMED = {
    "NaN": (
        tables(lambda v: v["quality"]["ffn-50"].update(kl=float("nan"))),
        "table.json: NaN is no number",
    ),
    "text": (
        tables(lambda v: v["quality"]["ffn-50"].update(kl="0.5")),
        "table.json: quality.ffn-50.kl: Input should be a valid number",
    ),
    "truth": (
        tables(lambda v: v["quality"]["ffn-50"].update(kl=True)),
        "table.json: quality.ffn-50.kl: Input should be a valid number",
    ),
    "null": (
        tables(lambda v: v["cost"]["depth-2"].update(touched=None)),
        "table.json: cost.depth-2.touched: Input should be a valid number",
    ),
    "no share": (
        tables(lambda v: v["quality"]["depth-2"].update(agreement=1.5)),
        "table.json: quality.depth-2.agreement: Input should be less than or equal to 1",
    ),
    "no perplexity": (
        tables(lambda v: v["quality"]["depth-2"].update(perplexity=0)),
        "table.json: quality.depth-2.perplexity: Input should be greater than 0",
    ),
    "budget": (
        tables(lambda v: v["kv_quality"].update({"-64": v["kv_quality"]["64"]})),
        "table.json: kv_quality.-64: Input should be greater than or equal to 1",
    ),
    "an unknown field": (
        tables(lambda v: v["quality"]["ffn-50"].update(more=1)),
        "table.json: quality.ffn-50.more: Unexpected",
    ),
    "an unknown part": (tables(lambda v: v.update(more=1)), "table.json: more: Unexpected"),
    "a part gone": (tables(lambda v: v.pop("speed")), "table.json: speed is missing"),
    "a key twice": (twice_a_key, "table.json: the key 'schema' is there twice"),
    "of no variant": (
        tables(lambda v: v["quality"].update(other=v["quality"]["ffn-50"])),
        "quality.other is of no variant",
    ),
    "no cost": (tables(lambda v: v["cost"].pop("ffn-50")), "'ffn-50' has no measured cost"),
    "corrects nothing": (
        specs(lambda v: v["corrected"].update(other={})),
        "corrected.other is of no variant",
    ),
    "a name twice": (
        specs(lambda v: v["variants"].append(v["variants"][0])),
        "two variants are named 'ffn-50'",
    ),
    "base": (rename("base"), "'base' cannot be the name of a variant"),
    "refuse": (rename("refuse"), "'refuse' cannot be the name of a variant"),
    "two lines": (rename("a\nb"), "cannot be the name of a variant"),
    "an at sign": (rename("a@b"), "'a@b' cannot be the name of a variant"),
    "no name": (rename(""), "'' cannot be the name of a variant"),
    "width is true": (
        specs(lambda v: v["variants"][0]["ffn"].__setitem__(1, True)),
        "variants.json: variants.0.ffn.1: Input should be a valid integer",
    ),
    "negative width": (specs(lambda v: v["variants"][0]["kv_groups"].__setitem__(0, -1)), "0..2"),
    "an unknown field of a variant": (
        specs(lambda v: v["variants"][0].update(heads=[1])),
        "variants.json: variants.0.heads: Unexpected",
    ),
    "no layers": (
        specs(lambda v: v["model"]["shape"].update(layers="3")),
        "variants.json: model.shape.layers: Input should be a valid integer",
    ),
    "no groups": (specs(lambda v: v["model"]["shape"].update(hidden=0)), "model.shape has"),
    "heads": (specs(lambda v: v["model"]["shape"].update(heads=3)), "model.shape has"),
    "a fingerprint": (
        specs(lambda v: v["model"].update(fingerprint=None)),
        "variants.json: model.fingerprint: Input should be a valid string",
    ),
    "half a pair": (specs(lambda v: v["model"].update(name="\ud800")), "half of a surrogate pair"),
    "id behind the end": (
        reorder(lambda t: t["ffn_order"].__setitem__((0, 0), 96)),
        "ffn_order is not a permutation",
    ),
    "negative id": (
        reorder(lambda t: t["kv_order"].__setitem__((0, 0), -1)),
        "kv_order is not a permutation",
    ),
    "fractions": (
        reorder(lambda t: t.update(ffn_order=t["ffn_order"].float())),
        "ffn_order is torch.float32",
    ),
    "another tensor": (
        reorder(lambda t: t.update(more=torch.zeros(1))), "order.safetensors holds"
    ),
    "a scale of another shape": (
        lambda f: rewrite(f, lambda t: t.update({"ffn-50/0.mlp.up.scale": torch.ones(64, 1)})),
        "corrections.safetensors: 0.mlp.up has a scale of shape",
    ),
    "whole numbers": (
        lambda f: rewrite(
            f, lambda t: t.update({"ffn-50/0.mlp.bias": torch.ones(64, dtype=torch.int32)})
        ),
        "corrections.safetensors: 0.mlp.bias is of torch.int32",
    ),
    "a layer in other digits": (
        lambda f: rewrite(
            f, lambda t: t.update({"ffn-50/\u00b2.mlp.bias": torch.ones(64).bfloat16()})
        ),
        "is not the name of a correction",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), NAMED.values(), ids=NAMED.keys())
def test_what_is_wrong_is_named(folder: Path, damage, message):
    damage(folder)
    with pytest.raises(ArtefactError) as refused:
        load_artefact(folder)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path):
    sound = example()
    quality = sound.table.quality | {"ffn-50": Quality(float("nan"), 0.5, 3.0)}
    with pytest.raises(TableError, match=r"quality\.ffn-50\.kl"):
        replace(sound, table=replace(sound.table, quality=quality)).save(tmp_path / "artefact")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_refused_in_one_line(folder: Path, damage):
    damage(folder)
    with pytest.raises(ArtefactError, match="artefact") as refused:
        load_artefact(folder)
    assert "\n" not in str(refused.value)


def test_refuses_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(ArtefactError, match="is missing"):
        load_artefact(tmp_path / "nothing")
