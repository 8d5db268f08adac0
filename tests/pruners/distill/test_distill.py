"""Training beside frozen weights: equal to the mask, exact gradients, exact resumption."""

from functools import partial

import pytest
import torch

from pruners.architecture import locate
from pruners.correction import LowRankCorrection, RecoveryError, RefitCorrection
from pruners.distill import TrainingOptions, TrainingRows, train, trainer
from pruners.distill.loss import kl_divergence, log_probabilities
from pruners.evaluation.evaluate import evaluate, variant_forward
from pruners.realization.mask import apply_mask
from pruners.realization.variant_set import VariantSet
from pruners.recovery.library import fit_library
from pruners.variant import Block, VariantSpec
from tests.support.models import FAMILIES, random_order, random_rows, tiny_model

ROWS, HELD_OUT = random_rows(24, (64, 48)), random_rows(4, (64,), seed=9)
BOTH = TrainingRows(ROWS, HELD_OUT)


def setting(family: str = "llama-gqa"):
    """Narrow blocks, skipped ones and a skipped layer, with corrections for all of them."""
    located = locate(
        tiny_model(family, num_hidden_layers=4, layer_types=None).requires_grad_(False)
    )
    shape, order = located.shape, random_order(located.shape)
    full = shape.kv_groups
    part = 1 if shape.cuts_groups else full
    specs = [
        VariantSpec("narrow", (part, 0, 0, full), (64, 96, 0, 0)),
        VariantSpec("late", (0, full, part, 0), (0, 64, 96, 32)),
    ]
    widths = {"attention": tuple({part, 0} - {full}), "mlp": (64, 32, 0)}
    library = fit_library(located, order, ROWS[:6], widths, 4)
    return located, order, specs, {spec.name: library.of(spec) for spec in specs}


def masked_kl(located, order, spec, corrections) -> float:
    reader = variant_forward(located, partial(apply_mask, located, spec, order, corrections))
    return evaluate(located, {"it": reader}, HELD_OUT).quality["it"].kl


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["norms", "residuals", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_trained_is_what_the_mask_measures(family: str, tier: str):
    located, order, specs, own = setting(family)
    before = [parameter.clone() for parameter in located.model.parameters()]
    training = TrainingOptions(tier, rank=4, batch_tokens=128, check=4)
    found = train(located, VariantSet(order, specs, own), BOTH, training)
    for spec in specs:
        trained = found[spec.name]
        assert min(trained.history) < trained.history[0]
        for corrections, kl in (
            (own[spec.name], trained.history[0]),
            (trained.corrections, min(trained.history)),
        ):
            assert masked_kl(located, order, spec, corrections) == pytest.approx(kl, rel=1e-4)
    for parameter, was in zip(located.model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)
        assert parameter.grad is None


def test_the_norms_tier_leaves_low_ranks_shared():
    located, order, specs, own = setting()
    training = TrainingOptions("norms", batch_tokens=256)
    found = train(located, VariantSet(order, specs, own), BOTH, training)["narrow"].corrections
    block = Block(0, "mlp")
    assert isinstance(found[block], LowRankCorrection)
    assert found[block].up is own["narrow"][block].up
    assert found[block].entry.rank == 0
    assert found[Block(1, "mlp")].rank == 0  # whole, and yet it has a bias and a norm now


def test_the_residuals_tier_trains_the_low_ranks_there_are_and_adds_none():
    located, order, specs, own = setting()
    training = TrainingOptions("residuals", rank=4, batch_tokens=256)
    found = train(located, VariantSet(order, specs, own), BOTH, training)["narrow"].corrections
    block = Block(0, "mlp")
    before = own["narrow"][block]
    assert found[block].up.shape == before.up.shape
    product = found[block].up.float() @ found[block].down.float()
    assert not torch.allclose(product, before.up.float() @ before.down.float(), atol=1e-4)
    assert found[block].entry.rank == 0
    assert found[Block(1, "mlp")].rank == 0


def test_the_gradient_is_that_of_autograd():
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50).requires_grad_(False)
    base = log_probabilities(head, torch.randn(9, 16))
    hidden = torch.randn(9, 16, requires_grad=True)
    again = hidden.detach().clone().requires_grad_(True)
    loss = kl_divergence(head, hidden, base)
    expected = torch.nn.functional.kl_div(
        head(again).log_softmax(-1), base, log_target=True, reduction="batchmean"
    )
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad, again.grad)


@pytest.mark.slow
def test_a_batch_in_parts_is_the_same_step(monkeypatch):
    located, order, specs, own = setting()
    training = TrainingOptions("lora", rank=4, batch_tokens=512)
    whole = train(located, VariantSet(order, specs, own), BOTH, training)
    monkeypatch.setattr(trainer, "MICRO_TOKENS", 128)
    parts = train(located, VariantSet(order, specs, own), BOTH, training)
    for name in whole:
        assert parts[name].history == pytest.approx(whole[name].history, rel=1e-3)


@pytest.mark.parametrize("tokens", [100, 300])  # rows have 64 and 48
def test_a_batch_of_any_size_is_checked_at_its_last_step(tokens: int):
    located, order, specs, own = setting()
    training = TrainingOptions("norms", batch_tokens=tokens, check=1000)
    found = train(located, VariantSet(order, specs, own), BOTH, training)
    assert [len(one.history) for one in found.values()] == [2, 2]


class KilledError(Exception):
    pass


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_result(tmp_path, monkeypatch):
    located, order, specs, own = setting()
    training = TrainingOptions("lora", rank=4, batch_tokens=128, check=2)
    run = partial(train, located, VariantSet(order, specs, own), BOTH, training)
    whole = run()
    step, steps = trainer.Trainer.step, []

    def killing(self, number, rows):
        if number == 5:
            raise KilledError
        step(self, number, rows)

    def counting(self, number, rows):
        steps.append(number)
        step(self, number, rows)

    state = tmp_path / "state.safetensors"
    monkeypatch.setattr(trainer.Trainer, "step", killing)
    with pytest.raises(KilledError):
        run(state=state)
    monkeypatch.setattr(trainer.Trainer, "step", counting)
    resumed = run(state=state)
    assert steps[0] == 4  # one check interval lost at the most
    for name in whole:
        assert resumed[name].history == whole[name].history
        for block, correction in whole[name].corrections.items():
            pairs = zip(
                correction.tensors(), resumed[name].corrections[block].tensors(), strict=True
            )
            assert all(torch.equal(one, other) for one, other in pairs)


def test_a_damaged_state_is_not_used(tmp_path):
    located, order, specs, own = setting()
    state = tmp_path / "state.safetensors"
    state.write_bytes(b"half")
    training = TrainingOptions("norms", batch_tokens=512)
    found = train(located, VariantSet(order, specs, own), BOTH, training, state)
    assert len(found["narrow"].history) > 1


def test_training_that_makes_nothing_better_changes_nothing_and_stops():
    located, order, specs, own = setting()
    training = TrainingOptions("norms", batch_tokens=64, rate=30.0, check=1, patience=2)
    found = train(located, VariantSet(order, specs, own), BOTH, training)
    for spec in specs:
        assert len(found[spec.name].history) == 3
        assert found[spec.name].corrections == own[spec.name]


def test_what_cannot_be_trained_is_refused():
    located, order, specs, own = setting()
    training = TrainingOptions(batch_tokens=128)
    with pytest.raises(RecoveryError, match="less than a batch of 2048"):
        train(
            located,
            VariantSet(order, specs, own),
            TrainingRows(ROWS[:2], HELD_OUT),
            TrainingOptions(),
        )
    whole = {Block(0, "mlp"): RefitCorrection(torch.zeros(64), torch.zeros(64, 64))}
    with pytest.raises(RecoveryError, match="'narrow' has materialised"):
        train(located, VariantSet(order, specs, {"narrow": whole}), BOTH, training)
    bert = locate(tiny_model("bert").requires_grad_(False))
    spec = VariantSpec("v", (4, 4, 4), (96, 96, 64))
    with pytest.raises(RecoveryError, match="family 'bert'"):
        train(bert, VariantSet(random_order(bert.shape), [spec], {}), BOTH, training)
