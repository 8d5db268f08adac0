import json
from functools import partial

import pytest
import torch

from pruners.architecture import locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.readers import ReadError
from pruners.evaluation.accuracy import measure_accuracy, without_prompts
from pruners.evaluation.evaluate import variant_forward
from pruners.evaluation.tasks import Choice, Question, Task, read_task
from pruners.realization.mask import apply_mask
from pruners.realization.order import identity_order
from pruners.support.checkpoint import Checkpoint
from pruners.support.errors import UserError
from pruners.variant import VariantSpec
from tests.support.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
NOTHING = Checkpoint(None, None)
QUESTIONS = [
    Question((Choice("the quick brown", " fox"), Choice("the quick brown", " dogs and dogs")), 0),
    Question((Choice("a fox", " jumps"), Choice("a fox", " is lazy"), Choice("a fox", " over")), 2),
    Question((Choice("the dog", " jumps over"), Choice("two foxes", " jumps over")), 1),
]


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_reads_every_form(tmp_path):
    path = write(
        tmp_path / "all.jsonl",
        {"query": "Question: why?\n", "choices": ["so", "thus"], "gold": 1},
        {
            "activity_label": "Cooking",
            "ctx_a": "[header] How to boil [title] Water.",
            "ctx_b": "the cook",
            "endings": ["boils [step] it.", "fries it."],
            "label": "0",
        },
        {
            "context_options": ["Ann met Bob so Ann", "Ann met Bob so Bob"],
            "continuation": "left.",
            "gold": 0,
        },
        {"context": "He took his", "continuation": "hat"},
    )
    questions = read_task(path).questions
    assert questions[0] == Question(
        (Choice("Question: why?\nAnswer:", " so"), Choice("Question: why?\nAnswer:", " thus")), 1
    )
    start = "Cooking: How to boil. Water. The cook"
    assert questions[1] == Question((Choice(start, " boils it."), Choice(start, " fries it.")), 0)
    assert questions[2].choices[1] == Choice("Ann met Bob so Bob", " left.")
    assert questions[3] == Question((Choice("He took his", " hat"),), None)
    assert read_task(path, limit=2).questions == questions[:2]


@torch.no_grad()
def test_accuracy_equals_summing_log_probabilities_by_hand():
    model = tiny_model()
    located = locate(model)

    def likelihood(choice: Choice) -> float:
        whole = TOKENIZER(choice.context + choice.continuation).input_ids
        start = len(TOKENIZER(choice.context).input_ids)
        log_p = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(float(log_p[i - 1, whole[i]]) for i in range(start, len(whole)))

    scores = [[likelihood(choice) for choice in question.choices] for question in QUESTIONS]
    right = [
        s.index(max(s)) == question.gold for s, question in zip(scores, QUESTIONS, strict=True)
    ]
    by_length = []
    for scored, question in zip(scores, QUESTIONS, strict=True):
        normed = [
            s / len(o.continuation[1:]) for s, o in zip(scored, question.choices, strict=True)
        ]
        by_length.append(normed.index(max(normed)) == question.gold)

    spec = VariantSpec("narrow", (1, 1, 1), (32, 32, 32))
    readers = {
        "base": partial(final_hidden, located),
        "narrow": variant_forward(
            located, partial(apply_mask, located, spec, identity_order(located.shape))
        ),
    }
    found = measure_accuracy(
        located, TOKENIZER, without_prompts(readers), Task("t", QUESTIONS), NOTHING
    )
    assert found["base"].items == 3
    assert found["base"].acc == pytest.approx(sum(right) / 3)
    assert found["base"].acc_norm == pytest.approx(sum(by_length) / 3)
    assert found["base"].same == 1
    assert found["narrow"].same < 1 or found["narrow"].acc == found["base"].acc


@torch.no_grad()
def test_last_words_are_right_if_greedy_decoding_writes_them():
    model = tiny_model()
    prompt = TOKENIZER("the quick brown").input_ids
    written = model(torch.tensor([prompt])).logits[0, -1].argmax()
    # A word that is one token with its space, and one that the model does not write.
    items = [Question((Choice("the quick brown", TOKENIZER.decode([written])),), None)]
    items.append(Question((Choice("the quick brown", " fox"),), None))
    located = locate(model)
    readers = {"base": partial(final_hidden, located)}
    found = measure_accuracy(
        located, TOKENIZER, without_prompts(readers), Task("t", items), NOTHING
    )["base"]
    assert found.acc_norm is None
    assert found.acc == 0.5


def test_answers_are_noted_and_not_asked_again(tmp_path):
    located = locate(tiny_model())
    checkpoint = Checkpoint(tmp_path / "j", "run")
    readers = {"base": partial(final_hidden, located)}
    first = measure_accuracy(
        located, TOKENIZER, without_prompts(readers), Task("t", QUESTIONS), checkpoint
    )

    def never(batch):
        raise AssertionError("answered already")

    assert (
        measure_accuracy(
            located, TOKENIZER, without_prompts({"base": never}), Task("t", QUESTIONS), checkpoint
        )
        == first
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no questions"),
        ("{", "line 1: not JSON"),
        ("[]", "line 1 is no task"),
        ('{"query": "q", "choices": ["a"], "gold": 0}', "line 1 is no task"),
        ('{"query": "q", "choices": ["a", "b"], "gold": 2}', "line 1 is no task"),
        ('{"query": "q", "choices": ["a", " "], "gold": 0}', "empty choice"),
        ('{"question": "q"}', "line 1 is no task"),
    ],
)
def test_refuses_in_one_line(tmp_path, content, message):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        read_task(tmp_path / "t.jsonl")
    assert "\n" not in str(refused.value)
    with pytest.raises(ReadError, match="cannot read"):
        read_task(tmp_path / "nothing.jsonl")
