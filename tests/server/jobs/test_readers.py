"""`trimtab readers` and the readers of `trimtab build` as a user runs them, on a tiny model."""

import json

import pytest
import torch

from pruners.artefact.folder import load_artefact
from pruners.builder import readers as builder
from pruners.builder.pipeline import build
from pruners.builder.readers import fit_readers
from pruners.builder.recipe import Recipe
from pruners.builder.steps import BuildRows
from server.engine.loading.load import load_tokenizer, load_transformers
from server.jobs import own_answers
from server.jobs import readers as job
from tests.support.commands import one_line, trimtab
from tests.support.models import random_rows
from tests.support.tiny import save_tiny

RECIPE = Recipe(ffn_keep=(0.67,), shares=(), kv_budgets=(), rank=4, keep_all=True)
TEXT = "the quick brown fox jumps over the lazy dog "


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory):
    """A tiny model, an artefact of it without readers, and a text."""
    root = tmp_path_factory.mktemp("reading")
    folder = save_tiny(root / "mine")
    rows = BuildRows(random_rows(6, (40,)), random_rows(2, (70,), seed=4), "random", "other")
    build(load_transformers(folder, torch.float32), "mine", rows, RECIPE).save(root / "artefact")
    texts = [{"text": TEXT * (4 + number)} for number in range(40)]
    (root / "text.jsonl").write_text("\n".join(map(json.dumps, texts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(root / "cache"))
        yield root


def fit(root, *options: object):
    return trimtab(
        "readers", "--model", root / "mine", "--artefact", root / "artefact", "--tokens", 1500,
        *options,
    )  # fmt: skip


def test_readers_are_added_and_replaced_and_all_else_stays(root):
    done = fit(root, "--text", root / "text.jsonl", "--out", root / "read")
    assert done.returncode == 0, done.stderr
    before, found = load_artefact(root / "artefact"), load_artefact(root / "read")
    assert [one.depth for one in found.readers.values()] == [2, 1, 1]
    assert found.maps.keys() == {1, 2}
    assert found.table.reader_quality.keys() == found.table.reader_cost.keys()
    assert found.table.quality == before.table.quality
    assert found.variants == before.variants
    assert "text.jsonl" in found.provenance["readers"]["source"]
    assert len(done.stdout.splitlines()) == 3
    assert not list(root.glob(".read*"))

    again = trimtab(
        "readers", "--model", root / "mine", "--artefact", root / "read", "--readers", "2+numbers",
        "--tokens", 1500, "--text", root / "text.jsonl",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    replaced = load_artefact(root / "read")
    (only,) = replaced.readers.values()
    assert (only.depth, only.numbers) == (2, True)
    assert replaced.maps.keys() == {2}
    assert torch.equal(replaced.maps[2].weight, found.maps[2].weight)


def test_the_base_writes_the_text_if_there_is_none(root, monkeypatch):
    monkeypatch.setattr(job, "_ROW_TOKENS", 300)
    done = fit(root, "--readers", "2", "--out", root / "own")
    assert done.returncode == 0, done.stderr
    found = load_artefact(root / "own")
    assert "sampled from the base" in found.provenance["readers"]["source"]
    assert next(iter(found.table.reader_quality.values()))["all"].prompts >= 8


@pytest.fixture(scope="module")
def prompts(root):
    """A file of a dozen prompts, as Dolly has them."""
    rows = [
        {"instruction": f"Which animal {n}?", "context": TEXT * 2 + str(n), "response": "the fox"}
        for n in range(12)
    ]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "prompts.jsonl"


def fit_to(root, prompts, out, *options):
    return trimtab(
        "readers", "--model", root / "mine", "--artefact", root / "artefact", "--out", out,
        "--prompts", prompts, *options,
    )  # fmt: skip


def test_readers_are_fitted_to_answers_to_prompts(root, prompts, monkeypatch):
    given = []

    def fitted(located, readers, text, checkpoint, progress):
        given.append(text)
        return fit_readers(located, readers, text, checkpoint, progress)

    monkeypatch.setattr(job, "fit_readers", fitted)
    done = fit_to(root, prompts, root / "told", "--distil", 1, "--prompt-limit", 11)
    assert done.returncode == 0, done.stderr
    found, (text,) = load_artefact(root / "told"), given
    told = found.provenance["readers"]
    assert told["prompts"].pop("hash")
    assert told["prompts"] == {"name": "prompts.jsonl", "fitted": 9, "held_out": 2}
    assert told["epochs"] == 1
    assert {by["all"].prompts for by in found.table.reader_quality.values()} == {2}

    tokenizer = load_tokenizer(root / "mine")
    asked = [tokenizer.decode(one.prompt) for one in (*text.answers, *text.pairs[:9])]
    for number, prompt in enumerate(asked):
        assert prompt.startswith(f"<|user|>Which animal {number}?\n\n{TEXT}")
        assert prompt.endswith(f"{number}<|end|><|assistant|>")
    assert len(text.pairs) >= 10  # the rest looks facts up
    rows = [torch.cat([one.prompt, one.answer]) for one in text.pairs]
    assert all(map(torch.equal, text.rows, rows))


def test_an_interrupted_call_goes_on_to_the_same_maps(root, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(own_answers, "_SAVED", 4)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "one"))
    assert fit_to(root, prompts, tmp_path / "whole", "--distil", 1).returncode == 0
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "other"))
    calls: list[str] = []

    def interrupted(module, name, at):
        real = getattr(module, name)

        def call(*given):
            calls.append(name)
            if calls.count(name) == at:
                raise KeyboardInterrupt
            return real(*given)

        monkeypatch.setattr(module, name, call)

    interrupted(own_answers, "answer_all", 2)
    interrupted(builder, "distil_maps", 2)
    for _ in range(2):
        assert fit_to(root, prompts, tmp_path / "parts", "--distil", 1).returncode != 0
        assert not (tmp_path / "parts").exists()
    assert fit_to(root, prompts, tmp_path / "parts", "--distil", 1).returncode == 0
    assert [calls.count("answer_all"), calls.count("distil_maps")] == [4, 3]
    whole, parts = load_artefact(tmp_path / "whole"), load_artefact(tmp_path / "parts")
    assert whole.maps.keys() == parts.maps.keys() == {1, 2}
    assert all(torch.equal(whole.maps[d].weight, parts.maps[d].weight) for d in (1, 2))
    assert whole.table.reader_quality == parts.table.reader_quality
    assert whole.provenance["readers"] == parts.provenance["readers"]


def test_build_fits_readers(root):
    done = trimtab(
        "build", "--model", root / "mine", "--out", root / "built", "--text", root / "text.jsonl",
        "--tokens", 600, "--shares", "0.8", "--readers", "2,1+numbers", "--reader-tokens", 1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 readers" in done.stdout
    found = load_artefact(root / "built")
    assert [one.numbers for one in found.readers.values()] == [False, True]
    assert found.table.reader_quality.keys() == found.readers.keys()


def test_evaluate_measures_readers(root):
    assert fit(root, "--text", root / "text.jsonl", "--out", root / "seen").returncode == 0
    fitted = load_artefact(root / "seen")
    questions = [{"context": TEXT * 3, "continuation": word} for word in ("the", "dog")]
    (root / "words.jsonl").write_text("\n".join(map(json.dumps, questions)))
    done = trimtab(
        "evaluate", "--model", root / "mine", "--artefact", root / "seen", "--no-timing",
        "--text", root / "text.jsonl", "--window", 128, "--limit", 1280, "--kv-prompt", 40,
        "--prompts", root / "text.jsonl", "--prompt-limit", 12, "--tasks", root / "words.jsonl",
        "--reading-lengths", "120,4000", "--reading-items", 3,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = load_artefact(root / "seen")
    table = found.table
    assert found.readers == fitted.readers
    assert {by["all"].prompts for by in table.reader_quality.values()} == {12}
    assert table.reader_quality.keys() == table.reader_cost.keys() == found.readers.keys()
    everybody = ["base", *found.readers, *(spec.name for spec in found.variants)]
    # The model has no context of 4,000 tokens.
    assert set(table.reading_tasks) == {"passkey-120", "lookup-120", "copy-120", "words"}
    assert all(list(by) == everybody for by in table.reading_tasks.values())
    assert table.reading_tasks["copy-120"]["base"].items == 3
    assert table.tasks["words"]["base"] == table.reading_tasks["words"]["base"]
    report = (root / "seen" / "report" / "report.md").read_text()
    assert report.index("## Readers") < report.index("## Reading tasks") < report.index("Quality")
    assert all(f"| {name} |" in report for name in found.readers)
    assert "](loss-reading.png)" in report
    assert (root / "seen" / "report" / "loss-reading.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--reading-lengths", "20"], "--reading-lengths 20"),
        (["--reading-lengths", "many"], "--reading-lengths many"),
        (["--prompts", "nothing.jsonl"], "nothing.jsonl"),
    ],
)
def test_evaluate_refuses_in_one_line(root, options, says):
    one_line(
        trimtab("evaluate", "--model", root / "mine", "--artefact", root / "artefact", *options),
        says,
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--readers", "3"], "does not go with the model's 3 layers"),
        (["--readers", "nan"], "a reader of depth nan"),
        (["--readers", "inf"], "a reader of depth inf"),
        (["--readers", "two"], "--readers two is no list of layers"),
        (["--readers", "2+more"], "no list of layers"),
        (["--artefact", "nothing"], "nothing"),
        (["--text", "nothing.txt"], "nothing.txt"),
        (["--tokens", "12"], "256"),
        (["--prompts", "nothing.jsonl"], "nothing.jsonl"),
        (["--prompts", "a.jsonl", "--text", "b.txt"], "--prompts takes the place of --text"),
        (["--prompts", "a.jsonl", "--tokens", "300"], "takes the place of --text and --tokens"),
        (["--prompt-limit", "20"], "--prompt-limit is for --prompts"),
        (["--prompts", "few.jsonl"], "few.jsonl has 7 usable prompts; 8 are needed"),
        (["--prompts", "same.jsonl"], "0 of the 9 prompts of same.jsonl after the first 3"),
    ],
)
def test_refuses_in_one_line(root, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    for name, asked in (("few", range(7)), ("same", [1] * 12)):
        lines = (json.dumps({"prompt": f"the dog {number}"}) for number in asked)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    done = trimtab(
        "readers", "--model", root / "mine", "--artefact", root / "artefact", "--out",
        root / "none", *options,
    )  # fmt: skip
    one_line(done, says)
    assert not list(root.glob("none*"))
    assert not list(root.glob(".none*"))


def test_refuses_an_artefact_of_another_model(root, tmp_path):
    other = save_tiny(tmp_path / "other", seed=1)
    done = trimtab("readers", "--model", other, "--artefact", root / "artefact")
    one_line(done, "built for 'mine'")
