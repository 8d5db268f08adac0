"""Teacher-forced losses, against those that `transformers` gives on whole rows."""

import pytest
import torch

from pruners.architecture import locate
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from server.shadow.teacher_forcing import TeacherForcing
from tests.support.driving import random_order, runner_of, variants_of, weights_of
from tests.support.tiny import tiny_model

PROMPT, OUTPUT = list(range(20, 45)), list(range(60, 79))


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "ffn-50", "mixed"])
def test_losses_are_those_of_transformers(name: str):
    runner = runner_of(weights_of(tiny_model(), seed=7), capacity=512)
    variants = variants_of(runner.decoder.weights)
    model = locate(tiny_model())
    shape = model.shape
    order = Order(
        random_order(shape.layers, shape.ffn, 7), random_order(shape.layers, shape.kv_groups, 7)
    )
    row = torch.tensor([PROMPT + OUTPUT[:-1]])
    scored = slice(len(PROMPT) - 1, None)
    base = model.model(row).logits[0, scored].log_softmax(-1)  # [output, vocabulary]
    with apply_mask(model, variants[name], order):
        other = model.model(row).logits[0, scored].log_softmax(-1)
    kl = (base.exp() * (base - other)).sum(-1)
    check = TeacherForcing(runner.decoder, PROMPT, OUTPUT, variants["base"], [variants[name]])
    while check.advance():
        pass
    (loss,) = check.losses()
    check.close()
    assert loss.tokens == len(OUTPUT)
    assert loss.kl == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-5)
    assert loss.max_kl == pytest.approx(float(kl.max()), rel=1e-3, abs=1e-5)
    agreement = float((base.argmax(-1) == other.argmax(-1)).float().mean())
    assert loss.agreement == pytest.approx(agreement)
    nll = -other.gather(-1, torch.tensor(OUTPUT)[:, None]).mean()
    assert loss.nll == pytest.approx(float(nll), rel=1e-3)
    assert runner.scheduler.cache.arena.used == 0


def test_an_answer_that_does_not_fit_the_cache_has_no_loss():
    runner = runner_of(weights_of(tiny_model(), seed=7), capacity=512)
    variants = variants_of(runner.decoder.weights)
    prompt = list(range(10, 310))
    check = TeacherForcing(runner.decoder, prompt, OUTPUT, variants["base"], [variants["ffn-50"]])
    assert not check.advance()
    assert check.losses() == []
    assert runner.scheduler.cache.arena.used == 0
