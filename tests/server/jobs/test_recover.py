"""`trimtab recover` and `export` as a user runs them, on a tiny model."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from controller.sensitivity import load_sensitivity
from pruners.architecture import locate
from pruners.artefact.folder import load_artefact
from pruners.builder.pipeline import build
from pruners.builder.recipe import Recipe
from pruners.builder.steps import BuildRows
from pruners.realization.mask import apply_mask
from server.engine.backends.base import Segment
from server.engine.loading.load import load_model, load_transformers, open_decoder
from tests.support.commands import one_line, trimtab
from tests.support.models import random_rows
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.slow

RECIPE = Recipe(ffn_keep=(0.67,), skip_layers=(1,), shares=(), kv_budgets=(), rank=4, keep_all=True)
WIDTH, DEPTH = "ffn-67", "depth-2"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory):
    """A tiny model and an artefact of it."""
    root = tmp_path_factory.mktemp("recovering")
    folder = save_tiny(root / "mine")
    rows = BuildRows(random_rows(6, (40,)), random_rows(2, (70,), seed=4), "random", "other")
    build(load_transformers(folder, torch.float32), "mine", rows, RECIPE).save(root / "artefact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(root / "cache"))  # sampled text is kept there
        yield root


def recover(root, *options: object):
    return trimtab(
        "recover", "--model", root / "mine", "--artefact", root / "artefact",
        "--tokens", 8192, "--batch", 512, *options,
    )  # fmt: skip


def test_a_variant_is_trained_served_and_exported(root):
    before = load_artefact(root / "artefact")
    done = recover(root, "--out", root / "better", "--variants", WIDTH, "--rank", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{WIDTH}: held-out KL")
    assert not list(root.glob(".better*"))
    found = load_artefact(root / "better")
    history = found.provenance["training"][WIDTH]["held_out_kl"]
    assert min(history) < history[0]
    assert {WIDTH} <= found.table.quality.keys() <= before.table.quality.keys()
    assert found.provenance["training"].keys() == {WIDTH}
    assert (
        found.table.cost[WIDTH].correction_parameters
        > before.table.cost[WIDTH].correction_parameters
    )
    assert found.corrections.keys() - {WIDTH} <= before.corrections.keys()

    prompt = list(range(30, 60))
    base = locate(load_transformers(root / "mine", torch.float32))
    spec = next(spec for spec in found.variants if spec.name == WIDTH)
    with torch.no_grad(), apply_mask(base, spec, found.order, found.corrections[WIDTH]):
        expected = base.model(torch.tensor([prompt])).logits[0]
    for artefact in (before, found):  # the base is the base's own, whatever is loaded
        model = load_model(root / "mine", "mine", "fp32", artefact)
        decoder = open_decoder(model, 512)
        logits = {}
        for name in ("base", WIDTH):
            cache = decoder.cache.open()
            assert cache.reserve(len(prompt))
            hidden = decoder.forward([Segment(prompt, cache, model.variants[name])])
            logits[name] = decoder.logits(hidden)
        if artefact is before:
            untouched = logits["base"]
    assert torch.equal(logits["base"], untouched)
    torch.testing.assert_close(logits[WIDTH], expected, rtol=1e-3, atol=1e-3)

    done = trimtab(
        "export", WIDTH, "--model", root / "mine", "--artefact", root / "better",
        "--out", root / "slice",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "from_pretrained" in done.stdout
    exported = AutoModelForCausalLM.from_pretrained(root / "slice")
    assert exported.config.intermediate_size == 64
    with torch.no_grad():
        found_logits = exported(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(found_logits, expected, rtol=1e-3, atol=1e-3)


def test_norms_of_all_variants_are_trained_in_place_twice(root):
    for seed in (0, 1):
        done = recover(root, "--tier", "norms", "--rate", "2e-2", "--seed", seed)
        assert done.returncode == 0, done.stderr
    found = load_artefact(root / "artefact")
    assert found.provenance["training"].keys() == {WIDTH, DEPTH}
    assert all(entry["tier"] == "norms" for entry in found.provenance["training"].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--variants", "ffn-1"), "no variant 'ffn-1'; it has"),
        (("--batch", 9000), "are less than a batch of 9000"),
        (("--device", "cuda:7"), "--device cuda:7 cannot be used"),
        (("--text", "nothing.txt"), "nothing.txt"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_in_one_line(root, options, message):
    done = recover(root, *options)
    one_line(done, message)


def test_sensitivity_learns_losses_from_prompts(root):
    text = "the quick brown fox jumps over the lazy dog"
    lines = [text[i % 9 : i % 9 + 5 + 3 * (i % 4)] * (1 + i % 3) for i in range(48)]
    (root / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": x}) for x in lines))
    options = ("--model", root / "mine", "--artefact", root / "artefact", "--tokens", 8)
    done = trimtab("sensitivity", *options, "--prompts", root / "prompts.jsonl")
    assert done.returncode == 0, done.stderr
    assert "patterns: cross-validated" in done.stdout
    found = load_sensitivity(root / "artefact", load_artefact(root / "artefact").fingerprint)
    assert found.level.keys() == {WIDTH, DEPTH}
    assert all(level > 0 for level in found.level.values())
    assert found.report["count"] == 48
    assert not list(root.glob(".artefact*"))
    (root / "few.jsonl").write_text(json.dumps({"prompt": "one"}))
    one_line(trimtab("sensitivity", *options, "--prompts", root / "few.jsonl"), "40 are needed")


def test_exporting_an_unknown_variant_is_refused_in_one_line(root):
    done = trimtab(
        "export",
        "x",
        "--model",
        root / "mine",
        "--artefact",
        root / "artefact",
        "--out",
        root / "o",
    )
    one_line(done, "has no variant 'x'")
