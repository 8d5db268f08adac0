"""Multiple-choice and last-word tasks from JSONL files, by log-likelihood."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.artefact.table import Accuracy
from pruners.data.readers import read_json_lines
from pruners.data.rows import TokenBatch, group_by_length, pad_rows
from pruners.evaluation.evaluate import Reader
from pruners.support.checkpoint import Checkpoint
from pruners.support.errors import UserError
from pruners.support.progress import track

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Z95 = 1.959964


class TaskError(UserError):
    """A task file that cannot be read as one. One clear line."""


@dataclass(frozen=True, slots=True)
class Option:
    """A continuation of a context, whose likelihood is asked for."""

    context: str
    continuation: str


@dataclass(frozen=True, slots=True)
class Item:
    """One question. Without `gold` it has one option, right if greedy decoding writes it."""

    options: tuple[Option, ...]
    gold: int | None


def read_task(path: Path, limit: int | None = None) -> list[Item]:
    """The first `limit` questions of a JSONL file. Raises `TaskError` or `ReadError`.

    A line is one of `{query, choices, gold}` (ARC, PIQA: answered behind "Answer:"), HellaSwag's
    own fields, `{context_options, continuation, gold}` (WinoGrande), or `{context, continuation}`
    (LAMBADA).
    """
    items: list[Item] = []
    for number, row in read_json_lines(path):
        if len(items) == limit:
            break
        try:
            items.append(_item(row))
        except KeyError as error:
            raise TaskError(f"{path.name} line {number} is no task: no field {error}") from error
        except (ValueError, TypeError) as error:
            raise TaskError(f"{path.name} line {number} is no task: {error}") from error
    if not items:
        raise TaskError(f"{path.name} holds no questions")
    return items


def _item(row: Any) -> Item:  # noqa: ANN401
    """Raises `KeyError`, `ValueError` or `TypeError`."""
    if not isinstance(row, dict):
        raise ValueError("no object")
    if "choices" in row:
        context = f"{_text(row, 'query').rstrip()}\nAnswer:"
        options = [Option(context, f" {choice}") for choice in _texts(row, "choices")]
        return _choice(options, row["gold"])
    if "endings" in row:
        first, second = _text(row, "ctx_a"), _text(row, "ctx_b").capitalize()
        start = _clean(f"{_text(row, 'activity_label')}: {first} {second}")
        endings = [f" {_clean(ending)}" for ending in _texts(row, "endings")]
        return _choice([Option(start, ending) for ending in endings], int(row["label"]))
    continuation = f" {_text(row, 'continuation')}"
    if "context_options" in row:
        options = [Option(context, continuation) for context in _texts(row, "context_options")]
        return _choice(options, row["gold"])
    return Item((Option(_text(row, "context"), continuation),), None)


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


def _choice(options: Sequence[Option], gold: object) -> Item:
    if type(gold) is not int:
        raise TypeError(f"gold {gold!r} is no whole number")
    if not 0 <= gold < len(options) or len(options) < 2:
        raise ValueError(f"gold {gold} of {len(options)} choices")
    if not all(option.continuation.strip() for option in options):
        raise ValueError("an empty choice")
    return Item(tuple(options), gold)


def _clean(text: str) -> str:
    """HellaSwag's WikiHow markers taken out, as the field does before it scores."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


@dataclass(frozen=True, slots=True)
class _Scored:
    """Log-likelihood of each option in order, and whether greedy decoding writes it."""

    likelihood: list[float]
    greedy: list[bool]


def accuracies(
    located: LocatedModel,
    tokenizer: "PreTrainedTokenizerBase",
    readers: Mapping[str, Reader],
    task: str,
    items: Sequence[Item],
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> dict[str, Accuracy]:
    """How many questions each variant answers rightly; the first reader is the base.

    One variant's answers are noted in the checkpoint as soon as it is through.
    """
    encoded = [_encode(tokenizer, option) for item in items for option in item.options]
    found: dict[str, Accuracy] = {}
    base: list[int] = []
    for name, reader in readers.items():
        score = partial(_score, located, reader, encoded, f"{task}, {name}", progress)
        noted = checkpoint.get_or_compute(f"task {task} {name}", score)
        scored = _Scored(*noted)
        answers = _answers(items, scored)
        base = base or answers
        found[name] = _accuracy(items, scored, answers, base)
    return found


def _encode(tokenizer: "PreTrainedTokenizerBase", option: Option) -> tuple[list[int], int]:
    """Tokens of context and continuation, and where the continuation starts."""
    whole = tokenizer(option.context + option.continuation).input_ids
    start = len(tokenizer(option.context).input_ids)
    return whole, min(start, len(whole) - 1)


@torch.no_grad()
def _score(
    located: LocatedModel,
    reader: Reader,
    encoded: Sequence[tuple[list[int], int]],
    what: str,
    progress: Progress | None,
) -> tuple[list[float], list[bool]]:
    likelihood = [0.0] * len(encoded)
    greedy = [True] * len(encoded)
    groups = list(group_by_length([len(tokens) for tokens, _ in encoded]))
    for group in track(groups, f"Answering {what}", progress):
        batch = pad_rows([torch.tensor(encoded[index][0]) for index in group])
        starts = torch.tensor([encoded[index][1] for index in group])
        scored = _continuations(batch, starts)
        hidden = reader(batch)
        log_p = located.head(hidden[scored.to(hidden.device)]).float().log_softmax(-1).cpu()
        targets = batch.targets(scored)
        chosen = log_p.gather(1, targets[:, None])[:, 0]
        likeliest = log_p.argmax(-1) == targets
        counts = scored.sum(1).tolist()
        for index, own, hits in zip(
            group, chosen.split(counts), likeliest.split(counts), strict=True
        ):
            likelihood[index] = float(own.double().sum())
            greedy[index] = bool(hits.all())
    return likelihood, greedy


def _continuations(batch: TokenBatch, starts: torch.Tensor) -> torch.Tensor:
    """Positions whose next token belongs to the continuation."""
    scored = batch.scored_positions()
    return scored & (torch.arange(scored.shape[1]) >= starts[:, None] - 1)


def _answers(items: Sequence[Item], scored: _Scored) -> list[int]:
    """The option each question is answered with; for last words 1 or 0, right or wrong."""
    return [
        int(scored.greedy[first])
        if item.gold is None
        else _best(scored.likelihood[first : first + len(item.options)])
        for item, first in _places(items)
    ]


def _accuracy(
    items: Sequence[Item], scored: _Scored, answers: Sequence[int], base: Sequence[int]
) -> Accuracy:
    right = sum(
        answer == (1 if item.gold is None else item.gold)
        for item, answer in zip(items, answers, strict=True)
    )
    normed = None
    if all(item.gold is not None for item in items):
        hits = 0
        for item, first in _places(items):
            scores = [
                scored.likelihood[first + i] / len(option.continuation.strip())
                for i, option in enumerate(item.options)
            ]
            hits += _best(scores) == item.gold
        normed = hits / len(items)
    same = sum(a == b for a, b in zip(answers, base, strict=True)) / len(items)
    share = right / len(items)
    return Accuracy(len(items), share, normed, _half_width(share, len(items)), same)


def _places(items: Sequence[Item]) -> Iterable[tuple[Item, int]]:
    first = 0
    for item in items:
        yield item, first
        first += len(item.options)


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _half_width(share: float, count: int) -> float:
    """Half the length of the Wilson score interval at 95 %."""
    z = _Z95
    return z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
