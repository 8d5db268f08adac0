"""Teacher-forced losses, against those that `transformers` gives on whole rows."""

import pytest
import torch

from pruners.architecture import locate
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from server.engine.reading_depth import ReadingDepths
from server.shadow.teacher_forcing import ForcedModel, TeacherForcing
from tests.support.driving import runner_of, variants_of, weights_of
from tests.support.parameters import random_order
from tests.support.readers import DEEPER, SubstitutingDecoder, as_read
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


@torch.no_grad()
@pytest.mark.parametrize("chunk_tokens", [7, 16, 128])
def test_a_reader_s_loss_is_that_of_the_prompt_as_it_was_read(chunk_tokens: int):
    """Its decoder computes other tokens in place of shallow ones, which an oracle needs no maps
    for."""
    runner = runner_of(weights_of(tiny_model(), seed=7), kind=SubstitutingDecoder, capacity=512)
    base = variants_of(runner.decoder.weights)["base"]
    model, scored = tiny_model(), slice(len(PROMPT) - 1, None)
    rows = [PROMPT + OUTPUT[:-1], as_read(PROMPT, DEEPER) + OUTPUT[:-1]]
    whole, read = model(torch.tensor(rows)).logits[:, scored].log_softmax(-1)
    forced = ForcedModel(base, ReadingDepths(3).of(PROMPT, DEEPER))
    check = TeacherForcing(runner.decoder, PROMPT, OUTPUT, base, [forced, base], chunk_tokens)
    while check.advance():
        pass
    found, same = check.losses()
    kl = (whole.exp() * (whole - read)).sum(-1)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found.kl > 1e-4
    assert same.kl == pytest.approx(0.0, abs=1e-6)


def test_an_answer_that_does_not_fit_the_cache_has_no_loss():
    runner = runner_of(weights_of(tiny_model(), seed=7), capacity=512)
    variants = variants_of(runner.decoder.weights)
    prompt = list(range(10, 310))
    check = TeacherForcing(runner.decoder, prompt, OUTPUT, variants["base"], [variants["ffn-50"]])
    assert not check.advance()
    assert check.losses() == []
    assert runner.scheduler.cache.arena.used == 0
