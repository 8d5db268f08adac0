"""What readers lose: the base's answers to prompts, predicted after a reader's reading."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from pruners.architecture import LocatedModel
from pruners.artefact.table import ReaderCost, ReaderQuality
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import group_by_length, hash_rows, pad_rows
from pruners.evaluation.divergence import DivergenceTotals, add_divergences
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.reading.realize import read_by
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import track

_LENGTHS = (0, 256, 1024, 4096, 16384)
"""Where buckets of prompts' lengths begin and end, in tokens."""
_FEWEST = 5  # prompts of a bucket; an interval of fewer says nothing
ALL = "all"
_CUT_PROMPTS, _CUT_ANSWER = (200, 600, 1100), 48
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """Token ids `[tokens]` of a prompt and of the base's answer to it."""

    prompt: Tensor
    answer: Tensor


def cut_answers(rows: Sequence[Tensor]) -> list[PromptAnswer]:
    """Return pieces of rows as prompts of three lengths and 48 tokens that follow each.

    If the base has written the rows, the pieces are its own answers. A row that is too short for
    any is a prompt of three quarters of its tokens.
    """
    found = []
    for row in rows:
        place = 0
        for prompt in cycle(_CUT_PROMPTS):
            end = place + prompt + _CUT_ANSWER
            if end > len(row):
                break
            found.append(PromptAnswer(row[place : end - _CUT_ANSWER], row[end - _CUT_ANSWER : end]))
            place = end
        if place == 0 and len(row) > 1:
            cut = max(1, len(row) * 3 // 4)
            found.append(PromptAnswer(row[:cut], row[cut:]))
    return found


@dataclass(frozen=True, slots=True)
class ReaderSet:
    """Readers by name, their maps by depth, and the kinds of tokens, int8 `[vocab]`."""

    readers: Mapping[str, PromptReader]
    maps: Mapping[int, KVMaps]
    kinds: Tensor

    def costs(self, shares: Mapping[str, float]) -> dict[str, ReaderCost]:
        """Return what each reader takes; `shares` are of the reading compute, by reader."""
        found = {}
        for name, reader in self.readers.items():
            tensors = self.maps[reader.depth].to_tensors().values()
            stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            numbers = self.maps[reader.depth].weight.numel()
            found[name] = ReaderCost(shares[name], numbers, stored)
        return found


@dataclass(frozen=True, slots=True)
class ReaderMeasurements:
    """`quality` by reader and bucket of prompt length, `cost` by reader."""

    quality: dict[str, dict[str, ReaderQuality]]
    cost: dict[str, ReaderCost]


@dataclass(frozen=True, slots=True)
class _AnswerLoss:
    """One prompt by one reader.

    `kl` is the mean over the answer in nats, `equal` of `answer` tokens have the base's top-1
    prediction; `share` is that of the reading compute of the `prompt` tokens.
    """

    prompt: int
    answer: int
    kl: float
    equal: int
    share: float


def measure_readers(
    located: LocatedModel,
    readers: ReaderSet,
    answers: Sequence[PromptAnswer],
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> ReaderMeasurements:
    """Measure each reader on the same prompts and answers, teacher-forced.

    Buckets with fewer than five prompts are left out. Finished batches are noted in the checkpoint.
    Raises `ValueError` for fewer than two prompts.
    """
    if len(answers) < 2:
        raise ValueError(f"{len(answers)} prompts are too few to measure readers on; give two")
    rows = [torch.cat([one.prompt, one.answer]) for one in answers]
    losses: dict[str, list[_AnswerLoss]] = {name: [] for name in readers.readers}
    text = hash_rows(rows)
    groups = list(group_by_length([len(row) for row in rows]))
    for number, group in enumerate(track(groups, "Measuring readers", progress)):

        def compute(group: Sequence[int] = group) -> dict[str, list[list[Any]]]:
            return _measure_batch(located, readers, [answers[index] for index in group])

        key = f"readers {' '.join(readers.readers)}, batch {number} of {text}"
        for name, found in checkpoint.get_or_compute(key, compute).items():
            losses[name] += [_AnswerLoss(*one) for one in found]
    quality = {name: _by_length(found) for name, found in losses.items()}
    shares = {
        name: sum(one.share * one.prompt for one in found) / sum(one.prompt for one in found)
        for name, found in losses.items()
    }
    return ReaderMeasurements(quality, readers.costs(shares))


@torch.no_grad()
def _measure_batch(
    located: LocatedModel, readers: ReaderSet, answers: Sequence[PromptAnswer]
) -> dict[str, list[list[Any]]]:
    """Return the fields of `_AnswerLoss` for each answer, by reader; JSON can hold them."""
    batch = pad_rows([torch.cat([one.prompt, one.answer]) for one in answers])
    prompts = torch.tensor([len(one.prompt) for one in answers])
    base = final_hidden(located, batch)
    found: dict[str, list[list[Any]]] = {}
    for name, reader in readers.readers.items():
        maps = readers.maps[reader.depth]
        with read_by(located, reader, maps, prompts, batch.tokens, readers.kinds) as shallow:
            hidden = final_hidden(located, batch)
        found[name] = []
        for row, one in enumerate(answers):
            prompt, answer = len(one.prompt), len(one.answer)
            predicting = slice(prompt - 1, prompt + answer - 1)
            total = DivergenceTotals()
            add_divergences(
                located.head,
                base[row, predicting],
                [hidden[row, predicting]],
                one.answer.to(base.device),
                [total],
            )
            full = prompt - int(shallow()[row, :prompt].sum())
            share = reader.cost(located.shape, prompt, full)
            found[name].append([prompt, answer, total.mean_kl, total.equal, share])
    return found


def _by_length(losses: Sequence[_AnswerLoss]) -> dict[str, ReaderQuality]:
    """Return the quality by bucket of prompt length, such as `256-1024`, and over `all`."""
    found = {}
    for low, high in pairwise(_LENGTHS):
        some = [one for one in losses if low <= one.prompt < high]
        if len(some) >= _FEWEST:
            found[f"{low}-{high}"] = _mean(some)
    return {**found, ALL: _mean(losses)}


def _mean(losses: Sequence[_AnswerLoss]) -> ReaderQuality:
    count = len(losses)
    mean = sum(one.kl for one in losses) / count
    variance = sum((one.kl - mean) ** 2 for one in losses) / (count - 1)
    return ReaderQuality(
        kl=mean,
        half_width=_Z95 * math.sqrt(variance / count),
        agreement=sum(one.equal for one in losses) / sum(one.answer for one in losses),
        prompts=count,
    )
