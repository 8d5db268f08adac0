"""Reading tasks: what they ask can be found in the prompt, and readers are asked like variants."""

import re
from functools import partial

import pytest
import torch

from pruners.architecture import locate
from pruners.calibration.layer_replay import final_hidden
from pruners.evaluation.accuracy import measure_accuracy, without_prompts
from pruners.evaluation.reading_tasks import ReadingPlan, make_reading_tasks
from pruners.evaluation.tasks import Choice, Question, Task
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.reading.realize import read_by
from pruners.support.checkpoint import Checkpoint
from tests.support.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
WORDS = "the quick brown fox jumps over the lazy dog and the fox sees a dog jump"


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    ids = TOKENIZER(f"{WORDS} " * 300, add_special_tokens=False).input_ids
    return make_reading_tasks(TOKENIZER, [torch.tensor(ids)], ReadingPlan((300, 900), 12, seed=1))


def asked(task: Task) -> list[tuple[str, str]]:
    assert all(question.gold is None for question in task.questions)
    return [(q.choices[0].context, q.choices[0].continuation) for q in task.questions]


@pytest.mark.parametrize("length", [300, 900])
def test_prompts_have_about_their_length(tasks, length: int):
    for kind in ("passkey", "lookup", "copy"):
        lengths = [
            len(TOKENIZER(context).input_ids) for context, _ in asked(tasks[f"{kind}-{length}"])
        ]
        assert max(lengths) <= length * 1.5  # the tokenizer of the test needs many for a number
        assert sum(lengths) / len(lengths) >= length * 0.5


def test_a_passkey_stands_once_before_its_question_at_many_places(tasks):
    places = []
    for context, answer in asked(tasks["passkey-900"]):
        (line,) = re.findall(r"The pass key is (\d+)\.", context)
        assert answer == f" {line}"
        assert context.endswith("The pass key is")
        places.append(context.index("The pass key is") / len(context))
    assert max(places) - min(places) > 0.3
    assert len({answer for _, answer in asked(tasks["passkey-900"])}) > 8


def test_what_is_looked_up_has_one_line(tasks):
    for context, answer in asked(tasks["lookup-900"]):
        *lines, cue = context.split("\n")
        (line,) = [line for line in lines if line.startswith(f"{cue} ")]
        assert line.removeprefix(cue).rstrip(".") == answer.rstrip(".")
        assert len(lines) > 8


def test_a_copied_passage_stands_in_the_text(tasks):
    for context, answer in asked(tasks["copy-300"]):
        text, _, cue = context.rpartition("\n\nA passage of the text above, word for word: ")
        assert cue + answer in text
        assert len(answer.split()) == 4


def test_a_seed_gives_the_same_questions(tasks):
    ids = TOKENIZER(f"{WORDS} " * 300, add_special_tokens=False).input_ids
    again = make_reading_tasks(TOKENIZER, [torch.tensor(ids)], ReadingPlan((300, 900), 12, seed=1))
    other = make_reading_tasks(TOKENIZER, [torch.tensor(ids)], ReadingPlan((300, 900), 12, seed=2))
    assert again == tasks
    assert all(other[name] != task for name, task in tasks.items())


def test_text_of_no_words_gives_what_needs_none():
    made = make_reading_tasks(TOKENIZER, [torch.tensor([5, 6, 7])], ReadingPlan((300,), 3))
    assert list(made) == ["lookup-300"]


@torch.no_grad()
def test_a_reader_reads_the_context_alone():
    located = locate(tiny_model())
    shape, generator = located.shape, torch.Generator().manual_seed(0)
    size = (shape.layers - 1, 2 * shape.kv_groups * shape.head_dim, shape.hidden + 1)
    maps, reader = KVMaps(1, torch.randn(size, generator=generator)), PromptReader("one", 1, last=2)

    contexts = [f"{WORDS} {word}" for word in WORDS.split()]

    def reading(batch, prompts):
        for row, prompt in zip(batch.tokens, prompts.tolist(), strict=True):
            assert TOKENIZER.decode(row[:prompt]) in contexts
        with read_by(located, reader, maps, prompts, batch.tokens):
            return final_hidden(located, batch)

    def likelihood(choice: Choice) -> float:
        whole = TOKENIZER(choice.context + choice.continuation, return_tensors="pt").input_ids
        start = len(TOKENIZER(choice.context).input_ids)
        with read_by(located, reader, maps, torch.tensor([start]), whole):
            log_p = located.model(whole).logits[0].log_softmax(-1)
        return sum(float(log_p[i - 1, whole[0, i]]) for i in range(start, whole.shape[1]))

    endings = (" fox", " dog jumps", " the", " brown lazy fox")
    choices = [tuple(Choice(context, ending) for ending in endings) for context in contexts]
    scores = [[likelihood(choice) for choice in some] for some in choices]
    answers = [some.index(max(some)) for some in scores]
    questions = [
        Question(some, answer if number % 2 else 0)
        for number, (some, answer) in enumerate(zip(choices, answers, strict=True))
    ]
    right = sum(q.gold == answer for q, answer in zip(questions, answers, strict=True))
    base = without_prompts({"base": partial(final_hidden, located)})
    task = Task("t", questions)
    found = measure_accuracy(
        located, TOKENIZER, {**base, "one": reading}, task, Checkpoint(None, None)
    )
    assert found["one"].acc == right / len(questions)
    assert found["one"].same < 1
