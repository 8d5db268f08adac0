"""Distilling maps lowers the loss that it is about, and nothing else changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pruners.architecture import UnsupportedModelError, locate
from pruners.calibration.layer_replay import final_hidden
from pruners.correction import RecoveryError
from pruners.data.rows import pad_rows
from pruners.distill import map_training_state, reader_maps
from pruners.distill.loss import kl_divergence
from pruners.distill.reader_maps import DistilOptions, distil_maps
from pruners.evaluation.reading_quality import PromptAnswer
from pruners.reading.fit import fit_maps
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.reading.realize import read_by
from tests.support.models import VOCAB, random_rows, tiny_model

DEPTH = 2
READERS = [PromptReader("two", DEPTH, last=4), PromptReader("named", DEPTH, last=4, numbers=True)]
NUMBERS = torch.arange(VOCAB) % 5 == 0


def answered(rows):
    return [PromptAnswer(row[:-8], row[-8:]) for row in rows]


def answers_kl(located, maps, pairs, reader):
    """Return the mean KL on answers, pair by pair, from full softmaxes."""
    losses = []
    for pair in pairs:
        answer = slice(len(pair.prompt) - 1, len(pair.prompt) + len(pair.answer) - 1)
        batch = pad_rows([torch.cat([pair.prompt, pair.answer])])
        base = located.head(final_hidden(located, batch)[0, answer]).log_softmax(-1)
        prompts = torch.tensor([len(pair.prompt)])
        with read_by(located, reader, maps, prompts, batch.tokens, NUMBERS):
            read = located.head(final_hidden(located, batch)[0, answer]).log_softmax(-1)
        losses.append((base.exp() * (base - read)).sum(-1).mean())
    return float(torch.stack(losses).mean())


def test_the_loss_of_prompts_that_were_not_learnt_from_falls() -> None:
    located = locate(tiny_model())
    pairs = answered(random_rows(48, (40, 36), seed=1))
    others = answered(random_rows(8, (40,), seed=2))
    maps = fit_maps(located, random_rows(8, (40,), seed=3), [DEPTH])[DEPTH]
    maps = KVMaps(DEPTH, 0.3 * maps.weight)
    before = {name: tensor.clone() for name, tensor in located.model.state_dict().items()}
    options = DistilOptions(NUMBERS, epochs=40, rate=1e-2)
    trained = distil_maps(located, maps, pairs, READERS, options)
    assert trained.depth == DEPTH
    assert not trained.weight.requires_grad
    with torch.no_grad():
        for reader in READERS:
            old = answers_kl(located, maps, others, reader)
            assert answers_kl(located, trained, others, reader) < 0.9 * old
    for name, tensor in located.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None and p.requires_grad for p in located.model.parameters())


@pytest.mark.cuda
def test_maps_are_trained_on_a_gpu_as_on_the_cpu() -> None:
    pairs = answered(random_rows(24, (40, 36), seed=1))
    fitted = fit_maps(locate(tiny_model()), random_rows(8, (40,), seed=3), [DEPTH])
    start, found = 0.3 * fitted[DEPTH].weight, []
    for device in ("cpu", "cuda"):
        located = locate(tiny_model().to(device))
        maps = KVMaps(DEPTH, start.to(device))
        trained = distil_maps(located, maps, pairs, READERS, DistilOptions(NUMBERS, epochs=4))
        found.append(trained.weight.cpu())
        assert trained.weight.device.type == device
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)


def test_an_interrupted_training_goes_on_to_the_same_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    located = locate(tiny_model())
    pairs = answered(random_rows(48, (40, 36), seed=1))
    maps = fit_maps(located, random_rows(8, (40,), seed=3), [DEPTH])[DEPTH]
    options = DistilOptions(NUMBERS, epochs=4, rate=1e-2)
    expected = distil_maps(located, maps, pairs, READERS, options)
    monkeypatch.setattr(map_training_state, "_SAVE_SECONDS", 0.0)
    options = replace(options, state=tmp_path / "state.safetensors")
    compute, steps = reader_maps._loss, []

    def fail_at_the_fourth(*args: Any) -> torch.Tensor:
        if len(steps) == 3:
            raise KeyboardInterrupt
        steps.append(0)
        return compute(*args)

    monkeypatch.setattr(reader_maps, "_loss", fail_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        distil_maps(located, maps, pairs, READERS, options)
    monkeypatch.setattr(reader_maps, "_loss", lambda *args: steps.append(0) or compute(*args))
    resumed = distil_maps(located, maps, pairs, READERS, options)
    assert torch.equal(resumed.weight, expected.weight)
    whole = len(list(reader_maps._draw([len(p.prompt) + 8 for p in pairs], READERS, options)))
    assert len(steps) == whole
    assert all(p.requires_grad for p in located.model.parameters())


def test_weights_of_positions_weigh_the_loss_and_its_gradient() -> None:
    head = torch.nn.Linear(6, 11, bias=False)
    student = torch.randn(5, 6, requires_grad=True)
    base = torch.randn(5, 11).log_softmax(-1)
    weights = torch.tensor([0.0, 0.5, 1.0, 2.0, 1.5])
    found = kl_divergence(head, student, base, weights)
    (gradient,) = torch.autograd.grad(found, student)
    logs = head(student).log_softmax(-1)
    expected = (weights * (base.exp() * (base - logs)).sum(-1)).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, student)[0])


def test_pairs_and_readers_that_do_not_fit_are_refused() -> None:
    located = locate(tiny_model())
    rows = random_rows(2, (20,))
    maps = fit_maps(located, rows, [DEPTH])[DEPTH]
    with pytest.raises(UnsupportedModelError, match="no rotary positions"):
        distil_maps(locate(tiny_model("gpt2")), maps, answered(rows), READERS, DistilOptions())
    with pytest.raises(RecoveryError, match="give some"):
        distil_maps(located, maps, [], READERS, DistilOptions())
    with pytest.raises(RecoveryError, match="depth 1"):
        distil_maps(located, maps, answered(rows), [replace(READERS[0], depth=1)], DistilOptions())
    with pytest.raises(RecoveryError, match="pair 0 lacks its prompt or its answer"):
        distil_maps(located, maps, [PromptAnswer(rows[0], rows[0][:0])], READERS, DistilOptions())
