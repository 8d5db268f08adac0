"""Multiple-choice and last-word questions from JSONL files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruners.data.readers import read_json_lines
from pruners.support.errors import UserError


class TaskError(UserError):
    """A file cannot be read as a task. The message is one line."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A continuation of a context, to be scored by its likelihood."""

    context: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Question:
    """Choices of which `gold` is the right one.

    Without `gold` there is one choice, which is right if greedy decoding writes it.
    """

    choices: tuple[Choice, ...]
    gold: int | None


@dataclass(frozen=True, slots=True)
class Task:
    """Questions under one name, which is that of their file."""

    name: str
    questions: Sequence[Question]


def read_task(path: Path, limit: int | None = None) -> Task:
    """Return the first `limit` questions of a JSONL file. Raises `TaskError` or `ReadError`.

    A line is one of `{query, choices, gold}` (ARC, PIQA: answered behind "Answer:"), HellaSwag's
    own fields, `{context_options, continuation, gold}` (WinoGrande), or `{context, continuation}`
    (LAMBADA).
    """
    questions: list[Question] = []
    for number, row in read_json_lines(path):
        if len(questions) == limit:
            break
        try:
            questions.append(_question(row))
        except KeyError as error:
            raise TaskError(f"{path.name} line {number} is no task: no field {error}") from error
        except (ValueError, TypeError) as error:
            raise TaskError(f"{path.name} line {number} is no task: {error}") from error
    if not questions:
        raise TaskError(f"{path.name} holds no questions")
    return Task(path.stem, questions)


def _question(row: Any) -> Question:  # noqa: ANN401
    """Return the question of one line.

    Raises `KeyError`, `ValueError` or `TypeError` for one that is none.
    """
    if not isinstance(row, dict):
        raise ValueError("no object")
    if "choices" in row:
        context = f"{_text(row, 'query').rstrip()}\nAnswer:"
        choices = [Choice(context, f" {choice}") for choice in _texts(row, "choices")]
        return _multiple_choice(choices, row["gold"])
    if "endings" in row:
        first, second = _text(row, "ctx_a"), _text(row, "ctx_b").capitalize()
        start = _clean(f"{_text(row, 'activity_label')}: {first} {second}")
        endings = [f" {_clean(ending)}" for ending in _texts(row, "endings")]
        return _multiple_choice([Choice(start, ending) for ending in endings], int(row["label"]))
    continuation = f" {_text(row, 'continuation')}"
    if "context_options" in row:
        choices = [Choice(context, continuation) for context in _texts(row, "context_options")]
        return _multiple_choice(choices, row["gold"])
    return Question((Choice(_text(row, "context"), continuation),), None)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    value = row[name]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name} is no list of texts")
    return value


def _multiple_choice(choices: Sequence[Choice], gold: object) -> Question:
    if type(gold) is not int:
        raise TypeError(f"gold {gold!r} is no whole number")
    if not 0 <= gold < len(choices) or len(choices) < 2:
        raise ValueError(f"gold {gold} of {len(choices)} choices")
    if not all(choice.continuation.strip() for choice in choices):
        raise ValueError("an empty choice")
    return Question(tuple(choices), gold)


def _clean(text: str) -> str:
    """Return a text of HellaSwag without its WikiHow markers, as lm-evaluation-harness does."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()
