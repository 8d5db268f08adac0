"""Answers that end before they are whole: cancelled, displaced, or at their deadline."""

import time

import pytest

from server.engine.queue_terms import QueueTerms
from server.engine.sequence import FinishReason
from tests.support.driving import runner_of, submit, variants_of, weights_of
from tests.support.tiny import tiny_model

PROMPT = list(range(3, 13))


@pytest.fixture
def runner():
    return runner_of(weights_of(tiny_model()), running=1)


def until(seconds: float) -> QueueTerms:
    return QueueTerms(ends_at=time.monotonic() + seconds)


def test_what_is_written_at_the_deadline_is_the_answer(runner):
    base = variants_of(runner.decoder.weights)["base"]
    whole, _ = submit(runner, PROMPT, base, 100)
    while runner.step():
        pass
    sequence, recorder = submit(runner, PROMPT, base, 100, terms=until(60))
    for _ in range(8):
        runner.step()
    assert recorder.last.finish_reason is None
    object.__setattr__(sequence.request, "terms", until(-1))
    runner.step()
    assert recorder.last.finish_reason is FinishReason.LENGTH
    assert recorder.last.stop_reason == "deadline"
    assert 0 < len(recorder.tokens) < 100
    assert recorder.tokens == whole.output[: len(recorder.tokens)]
    assert recorder.text == whole.detokenizer._decode(recorder.tokens), "nothing is held back"
    assert not runner.step()
    assert runner.scheduler.cache.arena.used == runner.scheduler.cache.prefixes.slots


def test_who_still_waits_at_the_deadline_is_refused(runner):
    base = variants_of(runner.decoder.weights)["base"]
    _, other = submit(runner, PROMPT, base, 4)
    _, late = submit(runner, PROMPT, base, 4, terms=until(-1))
    while runner.step():
        pass
    assert other.last.finish_reason is FinishReason.LENGTH
    assert other.last.stop_reason is None
    assert late.last.finish_reason is FinishReason.REFUSED
    assert "before its answer began" in late.last.error
    assert late.tokens == []


def test_only_who_has_not_started_gives_way(runner):
    base = variants_of(runner.decoder.weights)["base"]
    running, first = submit(runner, PROMPT, base, 4)
    waiting, second = submit(runner, PROMPT, base, 4)
    runner.step()
    running.displaced = waiting.displaced = True
    while runner.step():
        pass
    assert len(first.tokens) == 4
    assert second.last.finish_reason is FinishReason.REFUSED
    assert "queue is full" in second.last.error
