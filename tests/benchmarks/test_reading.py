"""`benchmarks.reading` in small: what requests cost, how they are cut, and that it runs."""

import json
import sys

import pytest
import torch

from benchmarks.reading import __main__ as reading
from benchmarks.reading.examples import Example, read_examples, split_text
from benchmarks.reading.losses import measure_losses, summarise
from benchmarks.reading.questions import as_item, make_tasks
from benchmarks.reading.study import StudyPlan, default_study
from benchmarks.reading.tasks import Item, measure_tasks
from benchmarks.reading.tiny import tiny_study
from benchmarks.reading.work import request_work, whole_work
from pruners.evaluation.tasks import Choice, Question
from pruners.support.errors import UserError
from pruners.variant import base_spec, width_spec
from tests.support.tiny import tiny_tokenizer


def counted_work(shape, spec, runs, visible, answer):
    """Return multiply-adds of reading and writing, counted token by token and layer by layer."""
    reading, writing = 0, answer * shape.hidden * shape.vocab
    for layer, (groups, ffn) in enumerate(zip(spec.kv_groups, spec.ffn, strict=True)):
        kv, heads = groups * shape.head_dim, groups * shape.heads // shape.kv_groups
        token = shape.hidden * (2 * heads * shape.head_dim + 2 * kv + 3 * ffn)
        pair = 2 * heads * shape.head_dim  # q k^T and the weighted sum of values
        cached = 0
        for place in range(runs.shape[1]):
            cached += int(visible[layer, place])
            if runs[layer, place]:
                reading += token + pair * cached
            elif visible[layer, place]:
                reading += shape.hidden * 2 * kv
        for _ in range(answer):
            cached += 1
            writing += token + pair * cached
    return reading, writing


def test_work_is_that_of_every_token_layer_and_pair():
    shape = tiny_study().located.shape
    generator = torch.Generator().manual_seed(0)
    visible = torch.rand(shape.layers, 23, generator=generator) < 0.8
    runs = visible & (torch.rand(visible.shape, generator=generator) < 0.5)
    for spec in (base_spec(shape), width_spec(shape, 0.5)):
        found = request_work(shape, spec, runs, visible, 7)
        assert (found.reading, found.writing) == counted_work(shape, spec, runs, visible, 7)
    everything = torch.ones_like(runs)
    whole = whole_work(shape, base_spec(shape), 23, 7)
    assert whole.total == sum(counted_work(shape, base_spec(shape), everything, everything, 7))


@torch.no_grad()
def test_a_cut_prompt_is_the_longest_that_costs_no_more():
    study = tiny_study()
    *_, cut = study.ways
    example = study.examples[-1]
    shape = study.located.shape
    base = base_spec(shape)
    like = next(way for way in study.ways if cut.name == f"cut as {way.name}")
    target = like.answer(example, {}).work
    found = cut.answer(example, {like.name: target})
    fitting = [
        tokens
        for tokens in range(len(example.context) + 1)
        if whole_work(shape, base, 12 + tokens, len(example.answer)).total <= target.total
    ]
    assert 0 < max(fitting) < len(example.context)
    assert found.work.total == whole_work(shape, base, 12 + max(fitting), 8).total
    short = Example(example.before, example.context[-max(fitting) :], example.after, example.answer)
    expected = study.ways[0].answer(short, {}).hidden
    torch.testing.assert_close(found.hidden, expected)


def test_losses_are_those_of_the_models_own_logits():
    study = tiny_study()
    losses = measure_losses(study.located, study.ways, study.examples)
    assert all(one.kl == 0 and one.reading == one.request == 1 for one in losses["base"])
    variant = losses["mix-50"]
    assert all(one.kl > 0 and one.request < 1 for one in variant)
    summary = summarise(variant, study.examples)
    values = torch.tensor([one.kl for one in variant])
    assert summary["kl"] == pytest.approx(float(values.mean()))
    assert summary["half_width"] == pytest.approx(1.96 * float(values.std()) / 2)
    assert summary["by_length"]["up to 256"]["requests"] == 4


def test_tasks_count_greedy_answers_and_the_likeliest_choice():
    study = tiny_study()
    base, example = study.ways[0], study.examples[0]
    row = list(example.prompt)
    with torch.no_grad():
        for _ in range(3):
            logits = study.located.model(torch.tensor([row])).logits[0, -1]
            row.append(int(logits.argmax()))
    written = Example(example.before, example.context, example.after, tuple(row[-3:]))
    other = Example(example.before, example.context, example.after, (*row[-3:-1], 3))
    tasks = {
        "last word": [Item((written,)), Item((other,))],
        "choice": [Item((other, written), gold=1), Item((written, other), gold=1)],
    }
    found = measure_tasks(study.located, [base], tasks)
    for task in tasks:
        share = found[task]["base"]
        assert (share["items"], share["right"]) == (2, 0.5)
        assert (share["low"], share["high"]) == pytest.approx((0.0945, 0.9055), abs=1e-3)


def test_a_prompt_is_split_where_its_parts_meet(tmp_path):
    tokenizer = tiny_tokenizer()
    parts = ("What is it?\n", "the quick brown fox", " Say.")
    found = split_text(tokenizer, parts, chat=True)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "".join(parts)}], tokenize=False, add_generation_prompt=True
    )
    assert list(found.prompt) == tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(found.context) == parts[1]
    assert (
        tokenizer.decode(found.truncated(2).context)
        == parts[1][-len(tokenizer.decode(found.context[-2:])) :]
    )
    rows = [{"instruction": "Why?", "context": "fox " * words} for words in (1, 2, 300, 3)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    counts = {"up to 256": 2, "up to 512": 1, "up to 1024": 1, "above 1024": 0}
    lengths = [one.length for one in read_examples(file, tokenizer, counts, 2000)]
    assert len(lengths) == 3
    assert lengths[0] < lengths[1] < 256 < lengths[2]
    file.write_text(json.dumps({"instruction": "Why?"}))
    with pytest.raises(UserError, match="holds no prompts"):
        read_examples(file, tokenizer, counts, 2000)


def test_the_quick_benchmark_writes_its_result_and_plot(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["reading", "--quick", "--json", str(path)])
    reading.main()
    result = json.loads(path.read_text())
    assert set(result["tasks"]["choice"]) == {"base", "mix-50", "read-75", "cut as read-75"}
    assert set(result["ways"]) > set(result["tasks"]["choice"])
    assert result["machine"]["processor"]
    assert path.with_suffix(".png").stat().st_size > 10_000
    assert "read-75" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["reading"])
    with pytest.raises(SystemExit):
        reading.main()
    assert "--prompts" in capsys.readouterr().err


def test_questions_become_items_whose_last_line_is_never_cut():
    tokenizer = tiny_tokenizer()
    question = Question(
        (Choice("one fox\ntwo dogs\n\nThe end is", " 4"), Choice("the lazy dog", " 5")), 1
    )
    item = as_item(tokenizer, question)
    parts = [tuple(map(tokenizer.decode, (c.context, c.after, c.answer))) for c in item.choices]
    assert parts == [("one fox\ntwo dogs\n", "\nThe end is", " 4"), ("the lazy dog", "", " 5")]
    assert item.gold == 1


def test_tasks_of_every_kind_are_made_of_documents_and_files(tmp_path):
    tokenizer = tiny_tokenizer()
    document = tuple(tokenizer.encode("the quick brown fox jumps over the lazy dog " * 40))
    file = tmp_path / "words.jsonl"
    lines = [{"context": "the quick brown", "continuation": "fox"}] * 3
    file.write_text("\n".join(map(json.dumps, lines)))
    found = make_tasks(tokenizer, [Example((), document, ())], {file: 2}, longest=600)
    assert set(found) == {
        *("passkey-200", "lookup-200", "copy-200", "passkey-500", "lookup-500", "copy-500"),
        *("choice", "words"),
    }
    assert len(found["words"]) == 2
    for item in found["choice"]:
        assert len(item.choices) == 4
        right = tokenizer.decode(item.choices[item.gold].answer).strip()
        text = tokenizer.decode(item.choices[0].prompt)
        cue = text.rpartition("\n")[2]
        assert f"{cue} {right}" in text.rpartition("\n")[0]
    (key,) = {len(item.choices) for item in found["passkey-500"]}
    assert key == 1


def test_the_study_of_the_default_model_has_its_readers_and_corrected_variants(tmp_path):
    prompts, texts = tmp_path / "prompts.jsonl", [f"Fact {i} of many. " * 30 for i in range(2)]
    rows = [{"instruction": "What is said?", "context": text} for text in texts]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    study = default_study(StudyPlan(prompts, {"up to 256": 1}, {}, answer_tokens=2))
    ways = {way.name: way for way in study.ways}
    assert {"read-67", "read-54", "read-42"} <= ways.keys()
    (writer,) = {name for name in ways if name.startswith("mix-50")}
    assert ways[writer]._variants.corrections_of(ways[writer]._spec)
