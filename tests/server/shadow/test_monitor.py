"""Which answers the shadow monitor checks, and how it makes way for live requests."""

import math

import pytest

from server.shadow.monitor import FinishedAnswer, ShadowMonitor
from server.shadow.teacher_forcing import TeacherForcing
from tests.support.driving import run, runner_of, submit, variants_of, weights_of
from tests.support.tiny import tiny_model

PROMPT, OUTPUT = tuple(range(20, 45)), tuple(range(60, 79))


class _Shadow:
    """A monitor over a tiny model, and the results that came."""

    def __init__(self, share: float = 1.0) -> None:
        self.runner = runner_of(weights_of(tiny_model(), seed=7), capacity=512)
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
