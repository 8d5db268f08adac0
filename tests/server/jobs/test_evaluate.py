"""`trimtab evaluate` as a user runs it, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch

from pruners.architecture import LocatedModel, locate
from pruners.artefact.folder import Artefact, load_artefact
from pruners.builder.pipeline import build
from pruners.builder.recipe import Recipe
from pruners.builder.steps import BuildRows
from pruners.data.corpus import read_corpus
from pruners.evaluation.budget_quality import measure_budgets
from pruners.evaluation.evaluate import evaluate, variant_forward
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


@pytest.fixture(scope="module")
def evaluated(made: Path) -> Artefact:
    """The artefact after the command has measured everything, on five rows of WikiText's format."""
    done = trimtab(
        "evaluate", "--model", made / "mine", "--artefact", made / "artefact",
        "--text", made / "wiki.test.raw", "--window", 64, "--limit", 320, "--kv-prompt", 40,
        "--tasks", made / "animals.jsonl", "--json", made / "copy.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(made.glob(".artefact*"))
    return load_artefact(made / "artefact")


@pytest.fixture(scope="module")
def located(made: Path) -> LocatedModel:
    return locate(load_transformers(made / "mine", torch.float32))


@pytest.fixture(scope="module")
def rows(made: Path) -> list[torch.Tensor]:
    """The rows that the command measures on."""
    rows = read_corpus(str(made / "wiki.test.raw")).rows(load_tokenizer(made / "mine"), 64, 320)
    assert len(rows) == 5
    return rows


def names_of(artefact: Artefact) -> set[str]:
    """Return the names of the base and of all variants."""
    return {BASE, *(spec.name for spec in artefact.variants)}


@pytest.mark.usefixtures("evaluated")
def test_the_table_is_also_written_where_json_says(made):
    copy, table = (made / name for name in ("copy.json", "artefact/table.json"))
    assert json.loads(copy.read_text()) == json.loads(table.read_text())


def test_the_perplexity_is_that_of_the_model(evaluated, located, rows):
    losses = [
        torch.nn.functional.cross_entropy(located.model(row[None]).logits[0, :-1], row[1:])
        for row in rows
    ]
    perplexity = torch.stack(losses).mean().exp().item()
    evaluation = evaluated.table.evaluation
    assert evaluation["base_perplexity"] == pytest.approx(perplexity, rel=1e-3)
    assert evaluation["protocol"] == "WikiText-2"
    assert evaluation["predictions"] == 5 * 63


def test_the_quality_of_a_variant_is_that_of_its_mask(evaluated, located, rows):
    for spec in evaluated.variants:
        corrections = evaluated.corrections.get(spec.name)
        forward = variant_forward(
            located, lambda s=spec, c=corrections: apply_mask(located, s, evaluated.order, c)
        )
        again = evaluate(located, {"x": forward}, rows).quality["x"]
        assert again.kl == pytest.approx(evaluated.table.quality[spec.name].kl, rel=1e-3)


def test_budgets_and_scorers_are_compared(evaluated, located, rows):
    table = evaluated.table
    assert table.kv_quality == measure_budgets(located, rows, (32,))
    assert all(set(shares) == {"25%", "50%", "75%"} for shares in table.eviction.values())
    assert set(table.eviction) >= {"streaming", "key-norm", "key-diff", "snap"}


def test_tasks_are_asked_of_every_variant(evaluated):
    accuracies = evaluated.table.tasks["animals"]
    assert set(accuracies) == names_of(evaluated)
    assert accuracies[BASE].items == 2
    assert accuracies[BASE].same == 1


def test_times_memory_and_cost_are_of_every_variant(evaluated):
    (speed,) = evaluated.table.speed.values()
    names = names_of(evaluated)
    assert set(speed["decode"]) == set(evaluated.table.cost) == names
    assert all(seconds > 0 for sizes in speed["decode"].values() for seconds in sizes.values())
    assert set(speed["kv"]) == {"32"}
    assert all(set(times) == {"whole", "kept"} for times in speed["kv"]["32"].values())
    assert speed["memory"]["peak"] >= speed["memory"]["before"] > 0


def test_the_report_shows_every_variant_answer_and_plot(evaluated, made):
    samples, names = evaluated.table.samples, names_of(evaluated)
    report = (made / "artefact" / "report" / "report.md").read_text()
    assert all(set(answers) == names for answers in samples.values())
    assert "Yield" in report
    assert "KV budgets: a step" in report
    assert all(f"## {question}" in report for question in samples)
    assert all(name in report for name in names)
    for plot in ("loss-bytes", "loss-flops", "loss-time", "widths"):
        picture = (made / "artefact" / "report" / f"{plot}.png").read_bytes()
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
