"""The reading tasks that ways are compared on, as items in three parts."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.reading.examples import Example, split_text
from benchmarks.reading.tasks import Item
from pruners.data.fact_lists import draw_facts
from pruners.evaluation.reading_tasks import ReadingPlan, make_reading_tasks
from pruners.evaluation.tasks import Choice, Question, read_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ITEMS = {200: 8, 500: 6, 1000: 4, 2000: 2, 4000: 1}
"""Items of passkeys and of lookups by the length of their prompts in tokens."""
_COPIED_UP_TO = 500  # tokens
_PASSAGES, _PASSAGE_FACTS, _CHOICES = 8, 12, 4


def make_tasks(
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    files: Mapping[Path, int],
    longest: int,
) -> dict[str, list[Item]]:
    """Return passkeys, lookups, copying and choices over a passage, and the tasks of `files`.

    What is hidden lies in the examples' documents, in prompts of at most `longest` tokens. `files`
    says how many questions of each file. Raises `TaskError` or `ReadError`.
    """
    filler = [torch.tensor(example.context) for example in examples]
    found: dict[str, list[Item]] = {}
    for length, items in ITEMS.items():
        if length > longest:
            continue
        plan = ReadingPlan((length,), items)
        for name, task in make_reading_tasks(tokenizer, filler, plan).items():
            if not name.startswith("copy") or length <= _COPIED_UP_TO:
                found[name] = [as_item(tokenizer, one) for one in task.questions]
    passages = [_passage_question(seed) for seed in range(_PASSAGES)]
    found["choice"] = [as_item(tokenizer, one) for one in passages]
    for path, limit in files.items():
        task = read_task(path, limit)
        found[task.name] = [as_item(tokenizer, one) for one in task.questions]
    return found


def as_item(tokenizer: "PreTrainedTokenizerBase", question: Question) -> Item:
    """Return a question as token ids. Its last line is what is asked, and is never cut."""
    return Item(tuple(_as_example(tokenizer, choice) for choice in question.choices), question.gold)


def _as_example(tokenizer: "PreTrainedTokenizerBase", choice: Choice) -> Example:
    text, end, asked = choice.context.rpartition("\n")
    parts = ("", text, end + asked) if end else ("", asked, "")
    prompt = split_text(tokenizer, parts, chat=False)
    answer = tokenizer(choice.continuation, add_special_tokens=False).input_ids
    return Example(prompt.before, prompt.context, prompt.after, tuple(answer))


def _passage_question(seed: int) -> Question:
    """Return a question about one of some facts, with answers of other facts to choose from."""
    facts, rng = draw_facts(_PASSAGE_FACTS, seed), random.Random(seed)
    asked, *others = rng.sample(facts, _CHOICES)
    offered = [asked, *others]
    rng.shuffle(offered)
    context = "\n".join(fact.line for fact in facts) + f"\n\n{asked.cue}"
    choices = tuple(Choice(context, f" {fact.answer}") for fact in offered)
    return Question(choices, offered.index(asked))
