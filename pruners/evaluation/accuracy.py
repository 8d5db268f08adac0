"""Accuracy of variants on tasks, by log-likelihood of the choices."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.artefact.table import Accuracy
from pruners.data.rows import TokenBatch, group_by_length, pad_rows
from pruners.evaluation.evaluate import VariantForward
from pruners.evaluation.tasks import Choice, Question, Task
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Z95 = 1.959964

PromptForward: TypeAlias = Callable[[TokenBatch, torch.Tensor], torch.Tensor]
"""Runs something on a batch of which `[rows]` first tokens are prompts, like `VariantForward`."""


@dataclass(frozen=True, slots=True)
class _Scores:
    """Log-likelihood in nats of each choice in order, and whether greedy decoding writes it."""

    likelihood: list[float]
    greedy: list[bool]


@dataclass(frozen=True, slots=True)
class _EncodedChoice:
    """Tokens of context and continuation together; the continuation begins at `start`."""

    tokens: list[int]
    start: int


def measure_accuracy(
    located: LocatedModel,
    tokenizer: "PreTrainedTokenizerBase",
    variants: Mapping[str, PromptForward],
    task: Task,
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> dict[str, Accuracy]:
    """Return how many questions each variant answers rightly; the first variant is the base.

    A variant may also be the base after a reader has read the context. The scores of one variant
    are noted in the checkpoint as soon as they are complete.
    """
    questions = task.questions
    encoded = [_encode(tokenizer, choice) for question in questions for choice in question.choices]
    accuracy: dict[str, Accuracy] = {}
    base_answers: list[int] = []
    for name, forward in variants.items():
        label = f"Answering {task.name}, {name}"
        score = partial(_score, located, forward, encoded, label, progress)
        scores = _Scores(*checkpoint.get_or_compute(f"task {task.name} {name}", score))
        answers = _answers(questions, scores)
        base_answers = base_answers or answers
        accuracy[name] = _accuracy(questions, scores, answers, base_answers)
    return accuracy


def without_prompts(variants: Mapping[str, VariantForward]) -> dict[str, PromptForward]:
    """Return variants that compute prompts and answers alike, as `measure_accuracy` takes them."""

    def forget_prompts(forward: VariantForward) -> PromptForward:
        return lambda batch, prompts: forward(batch)

    return {name: forget_prompts(forward) for name, forward in variants.items()}


def _encode(tokenizer: "PreTrainedTokenizerBase", choice: Choice) -> _EncodedChoice:
    tokens = tokenizer(choice.context + choice.continuation).input_ids
    start = len(tokenizer(choice.context).input_ids)
    return _EncodedChoice(tokens, min(start, len(tokens) - 1))


@torch.no_grad()
def _score(
    located: LocatedModel,
    forward: PromptForward,
    encoded: Sequence[_EncodedChoice],
    label: str,
    progress: Progress | None,
) -> tuple[list[float], list[bool]]:
    """Return the fields of `_Scores`, which JSON can hold."""
    likelihood = [0.0] * len(encoded)
    greedy = [True] * len(encoded)
    groups = list(group_by_length([len(choice.tokens) for choice in encoded]))
    for group in track(groups, label, progress):
        batch = pad_rows([torch.tensor(encoded[index].tokens) for index in group])
        starts = torch.tensor([encoded[index].start for index in group])
        scored = _continuations(batch, starts)
        hidden = forward(batch, starts)
        log_p = located.head(hidden[scored.to(hidden.device)]).float().log_softmax(-1).cpu()
        targets = batch.targets(scored)
        of_targets = log_p.gather(1, targets[:, None])[:, 0]
        likeliest = log_p.argmax(-1) == targets
        counts = scored.sum(1).tolist()
        for index, terms, hits in zip(
            group, of_targets.split(counts), likeliest.split(counts), strict=True
        ):
            likelihood[index] = float(terms.double().sum())
            greedy[index] = bool(hits.all())
    return likelihood, greedy


def _continuations(batch: TokenBatch, starts: torch.Tensor) -> torch.Tensor:
    """Return where the next token belongs to the continuation, bool `[rows, length]`.

    `starts` are the first positions of the continuations, `[rows]`.
    """
    scored = batch.scored_positions()
    return scored & (torch.arange(scored.shape[1]) >= starts[:, None] - 1)


def _answers(questions: Sequence[Question], scores: _Scores) -> list[int]:
    """Return the choice of each question; for last words 1 or 0, right or wrong."""
    return [
        int(scores.greedy[first])
        if question.gold is None
        else _best(scores.likelihood[first : first + len(question.choices)])
        for question, first in _with_first_choice(questions)
    ]


def _accuracy(
    questions: Sequence[Question],
    scores: _Scores,
    answers: Sequence[int],
    base_answers: Sequence[int],
) -> Accuracy:
    right = sum(
        answer == (1 if question.gold is None else question.gold)
        for question, answer in zip(questions, answers, strict=True)
    )
    normed = None
    if all(question.gold is not None for question in questions):
        hits = 0
        for question, first in _with_first_choice(questions):
            by_character = [
                scores.likelihood[first + i] / len(choice.continuation.strip())
                for i, choice in enumerate(question.choices)
            ]
            hits += _best(by_character) == question.gold
        normed = hits / len(questions)
    same = sum(a == b for a, b in zip(answers, base_answers, strict=True)) / len(questions)
    share = right / len(questions)
    return Accuracy(len(questions), share, normed, _half_width(share, len(questions)), same)


def _with_first_choice(questions: Sequence[Question]) -> Iterable[tuple[Question, int]]:
    """Yield each question with the index of its first choice among those of all questions."""
    first = 0
    for question in questions:
        yield question, first
        first += len(question.choices)


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _half_width(share: float, count: int) -> float:
    """Return half the length of the Wilson score interval at 95 % (Wilson 1927)."""
    z = _Z95
    return z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
