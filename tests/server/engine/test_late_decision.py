"""The action of a waiting request becomes final right before its prompt is read."""

import asyncio
import time

import pytest

from pruners.kv import make_eviction
from server.engine.detokenizer import Detokenizer
from server.engine.engine import Engine
from server.engine.late_decision import EngineAction
from server.engine.options import EngineOptions
from server.engine.sequence import Delta, FinishReason, GenerationRequest, Sequence
from tests.support.driving import (
    GREEDY,
    TOKENIZER,
    Recorder,
    reference,
    run,
    runner_of,
    submit,
    variants_of,
    weights_of,
)
from tests.support.readers import SHALLOW, SubstitutingDecoder, as_read
from tests.support.tiny import tiny_model

PROMPT = [(31 * i) % 384 for i in range(60)]
WEIGHTS = weights_of(tiny_model())
VARIANTS = variants_of(WEIGHTS)
BASE = VARIANTS["base"]


class Hook:
    """Notes when it is called, and returns an action."""

    def __init__(self, variant=BASE, budget=None, reader=None, error=None):
        self.action, self.error, self.calls = EngineAction(variant, budget, reader), error, 0

    def __call__(self) -> EngineAction:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.action


def fresh(**limits):
    return runner_of(WEIGHTS, kind=SubstitutingDecoder, **limits)


def wait_for(runner, hook, prompt=PROMPT, count=8, **more):
    request = GenerationRequest("late", tuple(prompt), count, BASE, **{"sampling": GREEDY, **more})
    recorder = Recorder()
    text = Detokenizer(TOKENIZER, request.stop, prompt, 0)
    sequence = Sequence(request, text, recorder, hook)
    runner.scheduler.add(sequence)
    return sequence, recorder


def test_it_is_asked_once_when_the_request_starts_not_while_it_waits():
    runner, hook = fresh(running=1), Hook()
    _, other = submit(runner, [5, 6], BASE, 6)
    sequence, recorder = wait_for(runner, hook)
    for _ in range(3):
        runner.step()
    assert (hook.calls, recorder.deltas) == (0, [])
    while not other.last.finish_reason:
        runner.step()
    runner.step()
    assert hook.calls == 1
    assert recorder.deltas[0] == Delta(), "the first one says that it is decided"
    runner.scheduler._preempt(sequence)
    run(runner)
    assert hook.calls == 1
    assert recorder.tokens == reference(tiny_model(), PROMPT, 8)


@pytest.mark.parametrize("first", [{}, {"reader": SHALLOW}, {"kv_budget": make_eviction(32)}])
@pytest.mark.parametrize("kind", ["base", "variant", "reader", "budget"])
def test_the_answer_is_that_of_the_final_action(first, kind):
    action = {
        "base": {},
        "variant": {"variant": VARIANTS["ffn-50"]},
        "reader": {"reader": SHALLOW},
        "budget": {"budget": make_eviction(40)},
    }[kind]
    runner = fresh()
    sequence, recorder = wait_for(runner, Hook(**action), **first)
    run(runner)
    plain = fresh()
    prompt = as_read(PROMPT, SHALLOW) if kind == "reader" else PROMPT
    budget = {"kv_budget": action["budget"]} if kind == "budget" else {}
    _, expected = submit(plain, prompt, action.get("variant", BASE), 8, **budget)
    run(plain)
    assert recorder.tokens == expected.tokens
    assert sequence.variant == sequence.request.variant == action.get("variant", BASE)
    assert not sequence.narrowed
    prefixes = runner.scheduler.cache.prefixes
    assert runner.scheduler.cache.arena.used == prefixes.slots
    assert bool(prefixes.slots) == (kind != "budget"), "what is kept is what was read"


def test_an_error_ends_that_request_alone():
    runner, hook = fresh(), Hook(error=RuntimeError("no idea"))
    _, failed = wait_for(runner, hook)
    _, fine = wait_for(runner, Hook())
    run(runner)
    assert [delta.finish_reason for delta in failed.deltas] == [FinishReason.ERROR]
    assert fine.tokens == reference(tiny_model(), PROMPT, 8)
    assert runner.scheduler.cache.arena.used == runner.scheduler.cache.prefixes.slots


def test_nothing_is_decided_while_there_is_no_room():
    runner, hook = fresh(capacity=192, running=4), Hook()
    _, large = submit(runner, range(3, 120), BASE, 8)
    runner.step()
    _, waiting = wait_for(runner, hook, range(100))
    while not (large.deltas and large.last.finish_reason):
        assert hook.calls == 0
        runner.step()
    run(runner)
    assert hook.calls == 1
    assert waiting.tokens == reference(tiny_model(), list(range(100)), 8)


def test_a_cancelled_request_is_never_decided():
    runner, hook = fresh(running=1), Hook()
    submit(runner, [5, 6], BASE, 4)
    sequence, recorder = wait_for(runner, hook)
    runner.step()
    sequence.cancelled = True
    run(runner)
    assert hook.calls == 0
    assert len(recorder.deltas) == 1


def test_an_answer_may_be_narrowed_once_it_is_decided():
    runner = fresh(step_tokens=16)
    sequence, _ = wait_for(runner, Hook(VARIANTS["ffn-75"]))
    assert not sequence.may_narrow(VARIANTS["ffn-50"])
    runner.step()
    assert sequence.may_narrow(VARIANTS["ffn-50"])
    assert not sequence.may_narrow(VARIANTS["ffn-75"])


def test_the_status_for_a_decision_leaves_out_the_answers_that_it_decides_on(monkeypatch):
    runner = fresh(running=1)
    monkeypatch.setattr(runner, "step", lambda on_step: bool(time.sleep(0.01)))
    engine = Engine(runner, TOKENIZER, EngineOptions(9, 1000))
    own, other = Hook(), Hook()

    async def ask() -> None:
        engine.start()
        for hook in (own, own, other, None):
            request = GenerationRequest("one", (5, 6), 4, BASE)
            engine.submit(request, asyncio.Queue(), hook)

    try:
        asyncio.run(ask())
        assert len(engine.status().sequences) == 4
        assert len(engine.status(own).sequences) == 2
        assert len(engine.status(other).sequences) == 3
    finally:
        engine.stop()


def test_a_decision_sees_neither_its_own_memory_nor_deadlocks():
    runner = fresh(capacity=512)
    engine = Engine(runner, TOKENIZER, EngineOptions(9, 1000))
    found = []

    class Looking(Hook):
        def __call__(self) -> EngineAction:
            found.append(engine.status(self))
            return super().__call__()

    async def ask() -> list[Delta]:
        inbox = asyncio.Queue()
        hook = Looking(VARIANTS["ffn-50"])
        engine.start()
        for _ in range(2):
            engine.submit(GenerationRequest("one", tuple(PROMPT), 4, BASE), inbox, hook)
        deltas, ended = [], 0
        while ended < 2:
            _, delta = await asyncio.wait_for(inbox.get(), 30)
            deltas.append(delta)
            ended += delta.finish_reason is not None
        return deltas

    try:
        deltas = asyncio.run(ask())
    finally:
        engine.stop()
    assert deltas.count(Delta()) == 2
    assert (found[0].kv_used, found[0].sequences) == (0, ())
