"""`trimtab evaluate` as a user runs it, on a tiny model."""

import json

import pytest
import torch

from pruners.artefact.folder import load_artefact
from pruners.builder.pipeline import build
from pruners.builder.recipe import Recipe
from pruners.builder.steps import BuildRows
from pruners.data.corpus import read_corpus
from pruners.evaluation.evaluate import evaluate, variant_forward
from pruners.kv.budget_quality import measure_budgets
from pruners.realization.mask import apply_mask
from pruners.variant import BASE
from server.engine.loading.load import load_tokenizer, load_transformers
from tests.support.commands import one_line, trimtab
from tests.support.models import random_rows
from tests.support.tiny import save_tiny

RECIPE = Recipe(
    ffn_keep=(0.67,), skip_layers=(1,), shares=(), kv_budgets=(32,), rank=4, keep_all=True
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """A tiny model, an artefact of it, and text and tasks to measure on."""
    root = tmp_path_factory.mktemp("evaluating")
    folder = save_tiny(root / "mine")
    rows = BuildRows(random_rows(6, (40,)), random_rows(2, (70,), seed=4), "random", "other")
    artefact = build(load_transformers(folder, torch.float32), "mine", rows, RECIPE)
    artefact.save(root / "artefact")
    (root / "wiki.test.raw").write_text(" = Title = \n \n the quick brown fox \n" * 60)
    questions = [
        {"query": "the quick", "choices": ["brown", "lazy dog"], "gold": 0},
        {"query": "the lazy", "choices": ["fox", "dog"], "gold": 1},
    ]
    (root / "animals.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return root


def test_writes_the_table_and_a_report(made):
    root, artefact = made, made / "artefact"
    done = trimtab(
        "evaluate", "--model", root / "mine", "--artefact", artefact,
        "--text", root / "wiki.test.raw", "--window", 64, "--limit", 320, "--kv-prompt", 40,
        "--tasks", root / "animals.jsonl", "--json", root / "copy.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(root.glob(".artefact*"))
    found = load_artefact(artefact)
    table, names = found.table, {v.name for v in found.variants}
    assert json.loads((root / "copy.json").read_text()) == json.loads(
        (artefact / "table.json").read_text()
    )

    model = load_transformers(root / "mine", torch.float32)
    rows = read_corpus(str(root / "wiki.test.raw")).rows(load_tokenizer(root / "mine"), 64, 320)
    assert len(rows) == 5
    loss = torch.stack(
        [
            torch.nn.functional.cross_entropy(model(row[None]).logits[0, :-1], row[1:])
            for row in rows
        ]
    ).mean()
    assert table.evaluation["base_perplexity"] == pytest.approx(loss.exp().item(), rel=1e-3)
    assert table.evaluation["protocol"] == "WikiText-2"
    assert table.evaluation["predictions"] == 5 * 63

    from pruners.architecture import locate

    decoder = locate(model)
    assert table.kv_quality == measure_budgets(decoder, rows, (32,))
    for spec in found.variants:
        own = found.corrections.get(spec.name)
        reader = variant_forward(
            decoder, lambda s=spec, c=own: apply_mask(decoder, s, found.order, c)
        )
        again = evaluate(decoder, {"x": reader}, rows).quality["x"]
        assert again.kl == pytest.approx(table.quality[spec.name].kl, rel=1e-3)

    assert set(table.tasks["animals"]) == {BASE, *names}
    assert table.tasks["animals"][BASE].items == 2
    assert table.tasks["animals"][BASE].same == 1
    shares = {"25%", "50%", "75%"}
    assert all(set(found_) == shares for found_ in table.eviction.values())
    assert set(table.eviction) >= {"streaming", "key-norm", "key-diff", "snap"}
    (speed,) = table.speed.values()
    assert set(speed["decode"]) == {BASE, *names}
    assert all(seconds > 0 for sizes in speed["decode"].values() for seconds in sizes.values())
    assert set(speed["kv"]) == {"32"}
    assert all(set(times) == {"whole", "kept"} for times in speed["kv"]["32"].values())
    assert speed["memory"]["peak"] >= speed["memory"]["before"] > 0
    assert set(table.cost) == {BASE, *names}

    assert all(set(answers) == {BASE, *names} for answers in table.samples.values())
    report = (artefact / "report" / "report.md").read_text()
    assert "Yield" in report
    assert "KV budgets: a step" in report
    assert all(f"## {prompt}" in report for prompt in table.samples)
    for name in names:
        assert name in report
    for plot in ("loss-bytes", "loss-flops", "loss-time", "widths"):
        picture = (artefact / "report" / f"{plot}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert f"]({plot}.png)" in report


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", "nothing.txt"], "nothing.txt"),
        (["--tasks", "nothing.jsonl"], "nothing.jsonl"),
        (["--artefact", "nothing"], "nothing"),
        (["--window", "4"], "window"),
    ],
)
def test_refuses_in_one_line(made, arguments, says):
    usual = [] if "--artefact" in arguments else ["--artefact", made / "artefact"]
    before = (made / "artefact" / "table.json").read_text()
    done = trimtab("evaluate", "--model", made / "mine", *usual, *arguments)
    one_line(done, says)
    assert (made / "artefact" / "table.json").read_text() == before


def test_refuses_an_artefact_of_another_model(made, tmp_path):
    other = save_tiny(tmp_path / "other", seed=1)
    done = trimtab("evaluate", "--model", other, "--artefact", made / "artefact", "--limit", 64,
                   "--window", 32)  # fmt: skip
    one_line(done, "built for 'mine'")
