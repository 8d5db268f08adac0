"""Test every family under every cut: mask, slice and reloaded slice compute the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruners.architecture import Shape, locate
from pruners.realization.mask import apply_mask
from pruners.realization.order import reorder_units
from pruners.realization.slice import slice_model
from pruners.realization.slice_folder import WEIGHTS, save_slice
from pruners.variant import VariantSpec
from tests.support.models import PRUNED_FAMILIES, logits, random_order, random_rows, tiny_model

ROWS = random_rows(2, (24,))
CUTS = ("ffn", "kv", "layer", "attention", "mlp", "mixed")
MATRIX = [
    (family, cut)
    for family in PRUNED_FAMILIES
    for cut in CUTS
    if (family, cut) != ("olmo2", "kv")  # refused
]
matrix = pytest.mark.parametrize(("family", "cut"), MATRIX)
close = {"rtol": 1e-4, "atol": 1e-4}


def cut_spec(cut: str, shape: Shape) -> VariantSpec:
    """Return a cut of three layers; the first counts the cached tokens, so it is cut as well."""
    full, ffn = shape.kv_groups, shape.ffn
    fewer = full - 1 if shape.cuts_groups else full
    kv_groups, neurons = {
        "ffn": ((full, full, full), (32, 32, 32)),
        "kv": ((full // 2,) * 3, (ffn, ffn, ffn)),
        "layer": ((full, 0, full), (ffn, 0, ffn)),
        "attention": ((0, full, full), (ffn, ffn, ffn)),
        "mlp": ((full, full, full), (ffn, 0, ffn)),
        "mixed": ((0, fewer, full), (32, 7, 0)),
    }[cut]
    return VariantSpec(cut, kv_groups, neurons)


def config_describes(family: str, cut: str) -> bool:
    """Return whether the family's configuration can describe the cut."""
    has_head_dim = family not in ("gpt2", "opt", "opt-350m", "bert")
    return cut in ("ffn", "layer") or (cut == "kv" and has_head_dim)


@matrix
def test_mask_equals_slice_and_the_base_does_not_change(family: str, cut: str):
    model = tiny_model(family)
    located = locate(model)
    before, base = logits(model, ROWS), sum(p.numel() for p in model.parameters())
    spec, order = cut_spec(cut, located.shape), random_order(located.shape)

    sliced = slice_model(located, spec, order)
    with apply_mask(located, spec, order):
        masked = logits(model, ROWS)

    torch.testing.assert_close(logits(sliced, ROWS), masked, **close)
    assert not torch.allclose(masked, before, **close)
    assert torch.equal(logits(model, ROWS), before)
    assert sum(p.numel() for p in sliced.parameters()) < base
    assert not {p.data_ptr() for p in sliced.parameters()} & {
        p.data_ptr() for p in model.parameters()
    }


@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_reordered_equals_base(family: str):
    model = tiny_model(family)
    before = logits(model, ROWS)
    located = locate(model)
    down = located.layers[1].mlp.down.weight.clone()
    reorder_units(located, random_order(located.shape))
    assert not torch.equal(located.layers[1].mlp.down.weight, down)
    torch.testing.assert_close(logits(model, ROWS), before, **close)


@pytest.mark.parametrize("family", [family for family in PRUNED_FAMILIES if family != "bert"])
def test_a_slice_generates_with_its_cache(family: str):
    located = locate(tiny_model(family))
    sliced = slice_model(located, cut_spec("mixed", located.shape), random_order(located.shape))
    prompt = torch.stack(random_rows(1, (12,)))
    cached, whole = (
        sliced.generate(
            prompt, do_sample=False, max_new_tokens=8, min_new_tokens=8, use_cache=use_cache
        )
        for use_cache in (True, False)
    )
    assert torch.equal(cached, whole)


RELOAD = """
import json, sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

root = Path(sys.argv[1])
tokens = load_file(root / "tokens")["tokens"]
found = {}
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    manifest = json.loads((folder / "trimtab_slice.json").read_text())
    if manifest["loader"] == "transformers from_pretrained":
        model = getattr(transformers, manifest["class"]).from_pretrained(folder)
    else:
        from pruners.realization.slice_folder import load_slice

        model = load_slice(folder)
    with torch.no_grad():
        found[folder.name] = model(tokens, use_cache=False).logits.contiguous()
save_file(found, root / "logits")
"""


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return the folder of all slices, and the logits that a new process computes with them."""
    root = tmp_path_factory.mktemp("slices")
    save_file({"tokens": torch.stack(ROWS)}, root / "tokens")
    for family, cut in MATRIX:
        located = locate(tiny_model(family))
        spec = cut_spec(cut, located.shape)
        sliced = slice_model(located, spec, random_order(located.shape))
        save_slice(sliced, spec, root / f"{family}.{cut}")
    subprocess.run([sys.executable, "-c", RELOAD, str(root)], check=True)
    return root, load_file(root / "logits")


@pytest.mark.slow
@matrix
def test_a_new_process_reloads_the_slice(family: str, cut: str, reloaded):
    root, found = reloaded
    located = locate(tiny_model(family))
    sliced = slice_model(located, cut_spec(cut, located.shape), random_order(located.shape))
    torch.testing.assert_close(found[f"{family}.{cut}"], logits(sliced, ROWS), rtol=1e-6, atol=1e-6)
    assert (root / f"{family}.{cut}" / WEIGHTS).exists() != config_describes(family, cut)
