"""Which answers the shadow monitor checks, and how it makes way for live requests."""

import math
from typing import Any

import pytest
import torch

from server.engine.reading_depth import ReadingDepths
from server.shadow.monitor import FinishedAnswer, ShadowMonitor
from server.shadow.teacher_forcing import TeacherForcing
from tests.support.driving import run, runner_of, submit, variants_of, weights_of
from tests.support.readers import DEEPER, SHALLOW, SubstitutingDecoder, as_read
from tests.support.tiny import tiny_model

PROMPT, OUTPUT = tuple(range(20, 45)), tuple(range(60, 79))


class _Shadow:
    """A monitor over a tiny model, and the results that came."""

    def __init__(self, share: float = 1.0, **changes: Any) -> None:
        self.runner = runner_of(weights_of(tiny_model(), seed=7), capacity=512, **changes)
        self.variants = variants_of(self.runner.decoder.weights)
        self.arena = self.runner.scheduler.cache.arena
        self.results = []
        self.monitor = ShadowMonitor(self.runner.decoder, self.variants["base"], share, seed=1)

    def offer(self, answer_id: str, variant: str, prompt=PROMPT, output=OUTPUT) -> FinishedAnswer:
        answer = FinishedAnswer(answer_id, self.variants[variant], prompt, output)
        self.monitor.offer(answer, lambda *result: self.results.append(result))
        return answer

    def finish(self) -> None:
        while self.monitor.step():
            pass


@pytest.fixture
def shadow() -> _Shadow:
    return _Shadow()


def test_live_requests_go_first_and_the_check_starts_again(shadow: _Shadow):
    answer = shadow.offer("one", "ffn-50")
    for _ in range(3):
        assert shadow.monitor.step()
    assert shadow.monitor.slots == shadow.arena.used > 0
    shadow.monitor.make_way()
    assert shadow.monitor.slots == shadow.arena.used == 0
    _, recorder = submit(shadow.runner, list(PROMPT), shadow.variants["mixed"], 6)
    run(shadow.runner)
    assert len(recorder.tokens) == 6
    shadow.finish()
    ((checked, loss),) = shadow.results
    assert checked is answer
    variants = shadow.variants
    check = TeacherForcing(
        shadow.runner.decoder, PROMPT, OUTPUT, variants["base"], [variants["ffn-50"]]
    )
    while check.advance():
        pass
    assert check.losses() == [loss]
    check.close()


def test_a_prompt_is_read_again_as_the_answer_was_and_in_full_by_the_base():
    """The decoder computes a shallow token as another one, which an oracle can do, too."""
    shadow = _Shadow(kind=SubstitutingDecoder)
    base = shadow.variants["base"]
    reading = ReadingDepths(shadow.runner.decoder.weights.shape.layers)
    prompt = tuple((31 * i) % 384 for i in range(75))
    for reader, other in ((SHALLOW, DEEPER), (DEEPER, SHALLOW)):
        depths = reading.of(prompt, reader)
        # A prefix of 20 tokens came from the cache, where another reader had left it.
        mixed = reading.of(prompt, other)[:20] + depths[20:]
        read = as_read(list(prompt), other)[:20] + as_read(list(prompt), reader)[20:]
        for taken, substituted in ((depths, as_read(list(prompt), reader)), (mixed, read)):
            shadow.results.clear()
            answer = FinishedAnswer("one", base, prompt, OUTPUT, reader.name, taken)
            shadow.monitor.offer(answer, lambda *result: shadow.results.append(result))
            shadow.finish()
            ((checked, loss),) = shadow.results
            assert checked.choice == f"base+{reader.name}"
            assert loss.kl == pytest.approx(kl(prompt, substituted), rel=1e-3)
            assert loss.kl > 0.001


@torch.no_grad()
def kl(prompt, substituted) -> float:
    """Return the mean KL over the answer after a prompt and after another one of its length."""
    model = tiny_model().eval()
    scored = slice(len(prompt) - 1, None)
    base, other = (
        model(torch.tensor([[*tokens, *OUTPUT[:-1]]])).logits[0, scored].log_softmax(-1)
        for tokens in (prompt, substituted)
    )
    return float((base.exp() * (base - other)).sum(-1).mean())


@pytest.mark.parametrize(("variant", "output"), [("base", OUTPUT), ("ffn-50", OUTPUT[:1])])
def test_answers_of_the_base_and_of_one_token_are_never_checked(shadow, variant, output):
    shadow.offer("one", variant, output=output)
    assert not shadow.monitor.step()


def test_a_share_of_answers_is_checked():
    shadow = _Shadow(share=0.25)
    for number in range(60):
        shadow.offer(str(number), "ffn-50", (5, 6), (7, 8))
    shadow.finish()
    assert 5 <= len(shadow.results) <= 25


def test_a_failed_check_is_dropped(shadow: _Shadow, monkeypatch):
    shadow.offer("one", "ffn-50")
    monkeypatch.setattr(shadow.runner.decoder, "forward", lambda segments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shadow.monitor.step()
    assert shadow.arena.used == 0
    assert not shadow.monitor.step()


def test_a_loss_that_is_not_finite_is_an_error_and_is_not_measured_again(shadow: _Shadow):
    shadow.runner.decoder.weights.embed[OUTPUT[0]] = math.nan
    shadow.offer("one", "ffn-50")
    with pytest.raises(ArithmeticError):
        shadow.finish()
    shadow.monitor.make_way()  # as the engine does after an error
    assert shadow.arena.used == 0
    assert not shadow.monitor.step()
    assert shadow.results == []
