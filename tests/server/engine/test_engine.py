"""The line in front of the engine is bounded, in requests and in tokens."""

import asyncio
import time
from dataclasses import replace

import pytest

from pruners.kv import make_eviction
from server.engine.engine import Engine, QueueFullError
from server.engine.options import EngineOptions
from server.engine.sequence import GenerationRequest, Sequence
from server.engine.sequence_status import status_of
from tests.support.driving import TOKENIZER, run, runner_of, submit, variants_of, weights_of
from tests.support.tiny import tiny_model


def accepted(lengths: list[int], most: int, tokens: int, monkeypatch) -> tuple[int, str]:
    """How many prompts of these lengths get into the line of an engine that never steps."""
    runner = runner_of(weights_of(tiny_model()), running=1)
    monkeypatch.setattr(runner, "step", lambda on_step: bool(time.sleep(0.01)))
    engine = Engine(runner, TOKENIZER, EngineOptions(most, tokens))
    base = variants_of(runner.decoder.weights)["base"]

    async def fill() -> tuple[int, str]:
        engine.start()
        for number, length in enumerate(lengths):
            try:
                request = GenerationRequest(str(number), (5,) * length, 4, base)
                engine.submit(request, asyncio.Queue())
            except QueueFullError as error:
                return number, str(error)
        return len(lengths), ""

    try:
        return asyncio.run(fill())
    finally:
        engine.stop()


@pytest.mark.parametrize(
    ("lengths", "most", "tokens", "number", "said"),
    [
        ([10] * 6, 3, 1000, 4, "4 requests are waiting"),
        ([10] * 6, 100, 45, 4, "40 tokens are waiting"),
        ([500, 10], 100, 45, 1, "500 tokens are waiting"),  # alone, any prompt may wait
        ([10] * 6, 100, 1000, 6, ""),
    ],
)
def test_the_line_is_bounded(lengths, most, tokens, number, said, monkeypatch):
    found = accepted(lengths, most, tokens, monkeypatch)
    assert found[0] == number
    assert said in found[1]


def test_what_a_waiting_prompt_has_cached_already_is_not_to_be_read(monkeypatch):
    runner = runner_of(weights_of(tiny_model()), capacity=1024)
    base, prompt = variants_of(runner.decoder.weights)["base"], tuple(range(60))
    submit(runner, prompt[:40], base, 4)
    run(runner)
    monkeypatch.setattr(runner, "step", lambda on_step: bool(time.sleep(0.01)))
    engine = Engine(runner, TOKENIZER, EngineOptions(4, 1000))
    reusable = engine.reusable(prompt)["base", None]
    assert reusable == 40

    async def ask() -> Sequence:
        plain = GenerationRequest("plain", prompt, 4, base, reusable=reusable)
        budgeted = replace(plain, request_id="budgeted", kv_budget=make_eviction(32))
        first, _ = [engine.submit(one, asyncio.Queue()).sequence for one in (plain, budgeted)]
        return first

    def unread() -> list[int]:
        return [s.prompt_left for s in engine.status().sequences]

    engine.start()
    try:
        sequence = asyncio.run(ask())
        while len(runner.scheduler.waiting) < 2:
            time.sleep(0.01)
        assert unread() == [20, 60], "a budget starts from nothing"
        runner.scheduler.schedule({})  # admitted: the tokens are in its own cache now
        assert unread()[0] == 20
        assert status_of(sequence, running=False).prompt_left == 20, (
            "in a snapshot from just before"
        )
    finally:
        engine.stop()
