from pathlib import Path

import pytest
import torch

from pruners.artefact.folder import ArtefactError, load_artefact
from tests.support.artefacts import edit_corrections, edit_json, edit_order


def in_table(change):
    """Return a damage that changes `table.json`."""
    return lambda folder: edit_json(folder / "table.json", change)


def in_variants(change):
    """Return a damage that changes `variants.json`."""
    return lambda folder: edit_json(folder / "variants.json", change)


def repeat_a_key(folder: Path) -> None:
    path = folder / "table.json"
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 3, "schema": 3'))


def in_order(change):
    return lambda folder: edit_order(folder, change)


def renamed(name: str):
    """Return a damage that gives the first variant another name wherever it is named."""

    def damage(folder: Path) -> None:
        edit_json(folder / "variants.json", lambda v: v["variants"][0].update(name=name))
        edit_json(
            folder / "table.json", lambda v: v["quality"].update({name: v["quality"]["ffn-50"]})
        )

    return damage


ERRORS = {
    "NaN": (
        in_table(lambda v: v["quality"]["ffn-50"].update(kl=float("nan"))),
        "table.json: NaN is no number",
    ),
    "text": (
        in_table(lambda v: v["quality"]["ffn-50"].update(kl="0.5")),
        "table.json: quality.ffn-50.kl: Input should be a valid number",
    ),
    "truth": (
        in_table(lambda v: v["quality"]["ffn-50"].update(kl=True)),
        "table.json: quality.ffn-50.kl: Input should be a valid number",
    ),
    "null": (
        in_table(lambda v: v["cost"]["depth-2"].update(touched=None)),
        "table.json: cost.depth-2.touched: Input should be a valid number",
    ),
    "no share": (
        in_table(lambda v: v["quality"]["depth-2"].update(agreement=1.5)),
        "table.json: quality.depth-2.agreement: Input should be less than or equal to 1",
    ),
    "no perplexity": (
        in_table(lambda v: v["quality"]["depth-2"].update(perplexity=0)),
        "table.json: quality.depth-2.perplexity: Input should be greater than 0",
    ),
    "budget": (
        in_table(lambda v: v["kv_quality"].update({"-64": v["kv_quality"]["64"]})),
        "table.json: kv_quality.-64: Input should be greater than or equal to 1",
    ),
    "an unknown field": (
        in_table(lambda v: v["quality"]["ffn-50"].update(more=1)),
        "table.json: quality.ffn-50.more: Unexpected",
    ),
    "an unknown part": (in_table(lambda v: v.update(more=1)), "table.json: more: Unexpected"),
    "a part gone": (in_table(lambda v: v.pop("speed")), "table.json: speed is missing"),
    "a key twice": (repeat_a_key, "table.json: the key 'schema' is there twice"),
    "of no variant": (
        in_table(lambda v: v["quality"].update(other=v["quality"]["ffn-50"])),
        "quality.other is of no variant",
    ),
    "no cost": (in_table(lambda v: v["cost"].pop("ffn-50")), "'ffn-50' has no measured cost"),
    "corrects nothing": (
        in_variants(lambda v: v["corrected"].update(other={})),
        "corrected.other is of no variant",
    ),
    "a name twice": (
        in_variants(lambda v: v["variants"].append(v["variants"][0])),
        "two variants are named 'ffn-50'",
    ),
    "base": (renamed("base"), "'base' cannot be the name of a variant"),
    "refuse": (renamed("refuse"), "'refuse' cannot be the name of a variant"),
    "two lines": (renamed("a\nb"), "cannot be the name of a variant"),
    "an at sign": (renamed("a@b"), "'a@b' cannot be the name of a variant"),
    "no name": (renamed(""), "'' cannot be the name of a variant"),
    "width is true": (
        in_variants(lambda v: v["variants"][0]["ffn"].__setitem__(1, True)),
        "variants.json: variants.0.ffn.1: Input should be a valid integer",
    ),
    "negative width": (
        in_variants(lambda v: v["variants"][0]["kv_groups"].__setitem__(0, -1)),
        "0..2",
    ),
    "an unknown field of a variant": (
        in_variants(lambda v: v["variants"][0].update(heads=[1])),
        "variants.json: variants.0.heads: Unexpected",
    ),
    "no layers": (
        in_variants(lambda v: v["model"]["shape"].update(layers="3")),
        "variants.json: model.shape.layers: Input should be a valid integer",
    ),
    "no groups": (in_variants(lambda v: v["model"]["shape"].update(hidden=0)), "model.shape has"),
    "heads": (in_variants(lambda v: v["model"]["shape"].update(heads=3)), "model.shape has"),
    "a fingerprint": (
        in_variants(lambda v: v["model"].update(fingerprint=None)),
        "variants.json: model.fingerprint: Input should be a valid string",
    ),
    "half a pair": (
        in_variants(lambda v: v["model"].update(name="\ud800")),
        "half of a surrogate pair",
    ),
    "id behind the end": (
        in_order(lambda t: t["ffn_order"].__setitem__((0, 0), 96)),
        "ffn_order is not a permutation",
    ),
    "negative id": (
        in_order(lambda t: t["kv_order"].__setitem__((0, 0), -1)),
        "kv_order is not a permutation",
    ),
    "fractions": (
        in_order(lambda t: t.update(ffn_order=t["ffn_order"].float())),
        "ffn_order is torch.float32",
    ),
    "another tensor": (
        in_order(lambda t: t.update(more=torch.zeros(1))),
        "order.safetensors holds",
    ),
    "a scale of another shape": (
        lambda f: edit_corrections(
            f, lambda t: t.update({"ffn-50/0.mlp.up.scale": torch.ones(64, 1)})
        ),
        "corrections.safetensors: 0.mlp.up has a scale of shape",
    ),
    "whole numbers": (
        lambda f: edit_corrections(
            f, lambda t: t.update({"ffn-50/0.mlp.bias": torch.ones(64, dtype=torch.int32)})
        ),
        "corrections.safetensors: 0.mlp.bias is of torch.int32",
    ),
    "a layer in other digits": (
        lambda f: edit_corrections(
            f, lambda t: t.update({"ffn-50/\u00b2.mlp.bias": torch.ones(64).bfloat16()})
        ),
        "is not the name of a correction",
    ),
}


@pytest.mark.parametrize(("damage", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_the_error_names_what_is_wrong(folder: Path, damage, message):
    damage(folder)
    with pytest.raises(ArtefactError) as refused:
        load_artefact(folder)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
