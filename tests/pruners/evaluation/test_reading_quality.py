"""Losses of readers against a plain computation, row by row."""

import math

import pytest
import torch

from pruners.architecture import locate
from pruners.artefact.table import ReaderQuality
from pruners.evaluation import reading_quality
from pruners.evaluation.reading_quality import PromptAnswer, ReaderSet, cut_answers, measure_readers
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.reading.realize import read_by
from pruners.support.checkpoint import Checkpoint
from tests.support.models import random_rows
from tests.support.tiny import VOCAB, tiny_model

READERS = {
    "two": PromptReader("two", 2, last=3),
    "numbers": PromptReader("numbers", 1, 3, numbers=True),
}
NUMBERS = torch.arange(VOCAB) % 23 == 0


@pytest.fixture(scope="module")
def located():
    return locate(tiny_model())


@pytest.fixture(scope="module")
def readers(located) -> ReaderSet:
    """Maps that are no fit: that of the layer at the depth itself would lose nothing."""
    shape, generator = located.shape, torch.Generator().manual_seed(0)
    rows = 2 * shape.kv_groups * shape.head_dim
    sizes = {depth: (shape.layers - depth, rows, shape.hidden + 1) for depth in (1, 2)}
    maps = {d: KVMaps(d, torch.randn(size, generator=generator)) for d, size in sizes.items()}
    return ReaderSet(READERS, maps, NUMBERS)


@pytest.fixture(scope="module")
def answers() -> list[PromptAnswer]:
    rows = random_rows(6, (40, 31, 22))
    return [PromptAnswer(row[: 12 + 2 * i], row[12 + 2 * i :]) for i, row in enumerate(rows[:5])]


@torch.no_grad()
def expected(located, readers: ReaderSet, name: str, answers) -> tuple[ReaderQuality, float]:
    """Return the quality over all prompts and the share of the reading compute."""
    losses, equal, reading, whole = [], 0, 0.0, 0
    for one in answers:
        row, first = torch.cat([one.prompt, one.answer])[None], len(one.prompt) - 1
        p = located.model(row).logits[0, first:-1].softmax(-1)
        reader = readers.readers[name]
        length = torch.tensor([len(one.prompt)])
        with read_by(located, reader, readers.maps[reader.depth], length, row, NUMBERS) as shallow:
            q = located.model(row).logits[0, first:-1].softmax(-1)
        losses.append((p * (p / q).log()).sum(-1).mean().item())
        equal += int((p.argmax(-1) == q.argmax(-1)).sum())
        full = len(one.prompt) - int(shallow().sum())
        reading += len(one.prompt) * reader.cost(located.shape, len(one.prompt), full)
        whole += len(one.prompt)
    kl = torch.tensor(losses)
    half = 1.96 * kl.std().item() / math.sqrt(len(kl))
    agreement = equal / sum(len(one.answer) for one in answers)
    return ReaderQuality(kl.mean().item(), half, agreement, len(kl)), reading / whole


@pytest.mark.parametrize("name", READERS)
def test_losses_are_those_of_each_prompt_alone(located, readers, answers, name, monkeypatch):
    monkeypatch.setattr(reading_quality, "_LENGTHS", (0, 15, 19, 999))
    monkeypatch.setattr(reading_quality, "_FEWEST", 2)
    measured = measure_readers(located, readers, answers, Checkpoint(None, None))
    quality, share = expected(located, readers, name, answers)
    found = measured.quality[name]
    assert found.keys() == {"0-15", "15-19", "all"}  # one prompt alone is too few
    assert found["all"].prompts == 5
    assert found["all"].kl == pytest.approx(quality.kl, rel=1e-3)
    assert found["all"].kl > 0
    assert found["all"].half_width == pytest.approx(quality.half_width, rel=1e-3)
    assert found["all"].agreement == pytest.approx(quality.agreement)
    some, _ = expected(located, readers, name, answers[:2])
    assert found["0-15"].kl == pytest.approx(some.kl, rel=1e-3)
    assert measured.cost[name].share == pytest.approx(share)
    shape = located.shape
    above = shape.layers - READERS[name].depth
    rows = above * 2 * shape.kv_groups * shape.head_dim
    assert measured.cost[name].parameters == rows * (shape.hidden + 1)
    assert measured.cost[name].bytes == rows * (64 // 2 + 2 * (2 + 2) + 4)


def test_a_reader_without_shallow_tokens_loses_nothing(located, readers, answers):
    whole = ReaderSet({"whole": PromptReader("whole", 1, last=99)}, readers.maps, NUMBERS)
    measured = measure_readers(located, whole, answers, Checkpoint(None, None))
    assert measured.quality["whole"]["all"] == ReaderQuality(0.0, 0.0, 1.0, 5)
    assert measured.cost["whole"].share == 1


def test_an_interrupted_measurement_goes_on(located, readers, answers, tmp_path, monkeypatch):
    expected = measure_readers(located, readers, answers, Checkpoint(None, None))
    measure_readers(located, readers, answers, Checkpoint(tmp_path / "run", "id"))
    monkeypatch.setattr(reading_quality, "final_hidden", None)
    found = measure_readers(located, readers, answers, Checkpoint(tmp_path / "run", "id"))
    assert found == expected


def test_one_prompt_is_refused(located, readers, answers):
    with pytest.raises(ValueError, match="too few"):
        measure_readers(located, readers, answers[:1], Checkpoint(None, None))


def test_rows_are_cut_into_prompts_and_what_follows():
    rows = [torch.arange(2100), torch.arange(12), torch.arange(1)]
    found = cut_answers(rows)
    assert [len(one.prompt) for one in found] == [200, 600, 1100, 9]
    assert [len(one.answer) for one in found] == [48, 48, 48, 3]
    whole = torch.cat([part for one in found[:3] for part in (one.prompt, one.answer)])
    assert torch.equal(whole, rows[0][: len(whole)])


def test_maps_are_counted_as_they_are_stored():
    maps = {1: KVMaps(1, torch.randn(2, 8, 5))}
    cost = ReaderSet({"one": PromptReader("one", 1)}, maps, NUMBERS).costs({"one": 0.5})["one"]
    assert (cost.parameters, cost.bytes) == (80, 64 // 2 + 16 * (2 + 2 + 4))
