"""Answers read again in idle moments, against `transformers` on whole rows."""

import pytest
import torch

from pruners.architecture import locate
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from server.shadow.monitor import Answered, Shadow
from server.shadow.teacher_forcing import Rereading
from tests.support.driving import random_order, run, runner_of, submit, variants_of, weights_of
from tests.support.tiny import tiny_model

PROMPT, OUTPUT = list(range(20, 45)), list(range(60, 79))


def fresh():
    runner = runner_of(weights_of(tiny_model(), seed=7), capacity=512)
    return runner, variants_of(runner.decoder.weights)


def finish(reading: Rereading):
    while reading.advance():
        pass
    found = reading.result()
    reading.close()
    return found


@torch.no_grad()
@pytest.mark.parametrize("name", ["base", "ffn-50", "mixed"])
def test_a_rereading_measures_what_transformers_does(name: str):
    runner, variants = fresh()
    decoder = locate(tiny_model())
    shape = decoder.shape
    order = Order(
        random_order(shape.layers, shape.ffn, 7), random_order(shape.layers, shape.kv_groups, 7)
    )
    row = torch.tensor([PROMPT + OUTPUT[:-1]])
    scored = slice(len(PROMPT) - 1, None)
    base = decoder.model(row).logits[0, scored].log_softmax(-1)
    with apply_mask(decoder, variants[name], order):
        other = decoder.model(row).logits[0, scored].log_softmax(-1)
    kl = (base.exp() * (base - other)).sum(-1)
    (found,) = finish(Rereading(runner.decoder, PROMPT, OUTPUT, variants["base"], [variants[name]]))
    assert found.tokens == len(OUTPUT)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-5)
    assert found.worst == pytest.approx(float(kl.max()), rel=1e-3, abs=1e-5)
    agreement = float((base.argmax(-1) == other.argmax(-1)).float().mean())
    assert found.agreement == pytest.approx(agreement)
    assert runner.scheduler.cache.arena.used == 0


def test_what_has_no_room_is_given_up():
    runner, variants = fresh()
    long = list(range(10, 310))
    reading = Rereading(runner.decoder, long, OUTPUT, variants["base"], [variants["ffn-50"]])
    assert not finish(reading)
    assert runner.scheduler.cache.arena.used == 0


def shadow_of(runner, variants, share: float = 1.0):
    heard = []
    shadow = Shadow(
        runner.decoder, variants["base"], share, lambda *found: heard.append(found), seed=1
    )
    return shadow, heard


def test_live_work_goes_first_and_the_rereading_starts_again():
    runner, variants = fresh()
    shadow, heard = shadow_of(runner, variants)
    answer = Answered("one", variants["ffn-50"], tuple(PROMPT), tuple(OUTPUT))
    shadow.offer(answer)
    shadow.offer(Answered("base", variants["base"], tuple(PROMPT), tuple(OUTPUT)))  # never chosen
    for _ in range(3):
        assert shadow.step()
    assert shadow.slots == runner.scheduler.cache.arena.used > 0
    shadow.make_way()
    assert shadow.slots == runner.scheduler.cache.arena.used == 0
    _, recorder = submit(runner, PROMPT, variants["mixed"], 6)
    run(runner)
    assert len(recorder.tokens) == 6
    while shadow.step():
        pass
    ((again, found),) = heard
    assert again is answer
    expected = finish(
        Rereading(runner.decoder, PROMPT, OUTPUT, variants["base"], [variants["ffn-50"]])
    )
    assert [found] == expected


def test_a_share_of_answers_is_chosen():
    runner, variants = fresh()
    shadow, heard = shadow_of(runner, variants, share=0.25)
    for number in range(60):
        shadow.offer(Answered(str(number), variants["ffn-50"], (5, 6), (7, 8)))
    while shadow.step():
        pass
    assert 5 <= len(heard) <= 25


def test_a_failed_rereading_is_dropped(monkeypatch):
    runner, variants = fresh()
    shadow, _ = shadow_of(runner, variants)
    shadow.offer(Answered("one", variants["ffn-50"], tuple(PROMPT), tuple(OUTPUT)))
    monkeypatch.setattr(runner.decoder, "forward", lambda segments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shadow.step()
    assert runner.scheduler.cache.arena.used == 0
    assert not shadow.step()
