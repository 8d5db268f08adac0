"""What goes wrong inside the engine's thread is heard of outside, at once and by everybody."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from server.engine.engine import Engine, EngineStoppedError, Inbox
from server.engine.options import EngineOptions
from server.engine.recovery import RestartBudget
from server.engine.sequence import Delta, FinishReason, GenerationRequest
from tests.support.driving import GREEDY, TOKENIZER, runner_of, variants_of, weights_of
from tests.support.tiny import tiny_model


def engine_of(**more) -> Engine:
    return Engine(
        runner_of(weights_of(tiny_model())), TOKENIZER, EngineOptions(100, 100_000, **more)
    )


def request_of(engine: Engine, *prompt: int, tokens: int = 8, **more) -> GenerationRequest:
    base = variants_of(engine._runner.decoder.weights)["base"]
    return GenerationRequest("one", prompt or (5, 6), tokens, base, sampling=GREEDY, **more)


async def ends(inbox: Inbox, count: int = 1) -> list[Delta]:
    """The last deltas of `count` answers, each within ten seconds."""
    found: list[Delta] = []
    while len(found) < count:
        _, delta = await asyncio.wait_for(inbox.get(), 10)
        if delta.finish_reason is not None:
            found.append(delta)
    return found


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert true()


class BrokenIdleWork:
    slots = 0

    def step(self) -> bool:
        return False

    def make_way(self) -> None:
        raise MemoryError("no way")


class BrokenLoad(BaseException):
    """Not even an `Exception`."""


def break_make_way(engine: Engine) -> None:
    engine._idle_work = BrokenIdleWork()


def break_add(engine: Engine) -> None:
    def add(sequence):
        raise RuntimeError("no room in the line")

    engine._runner.scheduler.add = add


def break_step(engine: Engine) -> None:
    def step(on_step):
        raise BrokenLoad("gone")

    engine._runner.step = step


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr("server.engine.recovery._FIRST_PAUSE_SECONDS", 0.05)


async def ask(engine: Engine, **more) -> Delta:
    inbox: Inbox = asyncio.Queue()
    engine.submit(request_of(engine, **more), inbox)
    return (await ends(inbox))[0]


@pytest.mark.parametrize("damage", [break_make_way, break_add, break_step])
def test_an_engine_that_breaks_ends_every_request_and_starts_again(
    damage, short_pauses, monkeypatch
):
    failures: list[str] = []
    engine = engine_of(on_failure=failures.append)
    repaired = engine._runner.step, engine._runner.scheduler.add, engine._idle_work

    async def break_it() -> tuple[list[Delta], float]:
        inbox: Inbox = asyncio.Queue()
        engine.submit(request_of(engine, tokens=400), inbox)
        while (await asyncio.wait_for(inbox.get(), 10))[1].finish_reason is not None:
            pass  # it runs
        damage(engine)
        started = time.monotonic()
        engine.submit(request_of(engine), inbox)
        found = await ends(inbox, 2)
        assert engine.restarting
        with pytest.raises(EngineStoppedError, match="starts again"):
            engine.submit(request_of(engine), inbox)
        engine._runner.step, engine._runner.scheduler.add, engine._idle_work = repaired
        return found, time.monotonic() - started

    engine.start()
    found, seconds = asyncio.run(break_it())
    assert [delta.finish_reason for delta in found] == [FinishReason.ERROR] * 2
    assert "the engine died: " in found[0].error
    assert seconds < 1
    until(lambda: engine.alive)
    assert failures == ["engine"]
    assert engine.failure is None
    cache = engine._runner.scheduler.cache
    assert cache.arena.used == 0, "nothing of the requests before is held"
    assert asyncio.run(ask(engine)).finish_reason is FinishReason.LENGTH
    assert not engine.status().sequences
    engine.stop()


def test_an_engine_that_does_not_get_well_says_why_and_ends(short_pauses):
    failures: list[str] = []
    engine = engine_of(on_failure=failures.append)
    engine.start()
    until(lambda: engine.alive)

    def forward(segments):
        raise RuntimeError("the device is gone")

    engine._runner.decoder.forward = forward

    async def ask_once() -> Delta:
        return await ask(engine)

    found = asyncio.run(ask_once())
    assert found.finish_reason is FinishReason.ERROR
    until(lambda: engine.failure is not None)
    assert failures.count("engine") == 3, "so often it was tried"
    assert "the device is gone" in engine.failure
    assert not engine.alive
    assert not engine.restarting
    until(lambda: not engine._thread.is_alive())
    with pytest.raises(EngineStoppedError, match="not running"):
        asyncio.run(submitted(engine))


def test_an_engine_whose_steps_all_fail_starts_again_though_its_decoder_works(short_pauses):
    failures: list[str] = []
    engine = engine_of(on_failure=failures.append)
    logits = engine._runner.decoder.sample

    def sample(hidden, draws):
        raise RuntimeError("no token today")

    engine._runner.decoder.sample = sample
    engine.start()
    for _ in range(9):
        assert "failed on this request" in asyncio.run(ask(engine)).error
    assert "engine" not in failures
    asyncio.run(ask(engine))
    until(lambda: "engine" in failures)
    engine._runner.decoder.sample = logits
    until(lambda: engine.alive)
    assert asyncio.run(ask(engine)).finish_reason is FinishReason.LENGTH
    engine.stop()


def test_an_engine_may_start_again_three_times_in_five_minutes():
    now = [0.0]
    budget = RestartBudget(lambda: now[0])
    assert [budget.take() for _ in range(4)] == [0.5, 1.0, 2.0, None]
    now[0] = 301.0
    assert budget.take() == 0.5


async def submitted(engine: Engine) -> None:
    engine.submit(request_of(engine), asyncio.Queue())


def test_a_listener_that_fails_costs_no_answer():
    def on_step(record):
        raise ValueError("not my day")

    engine = engine_of(on_step=on_step)

    async def ask() -> Delta:
        inbox: Inbox = asyncio.Queue()
        engine.submit(request_of(engine), inbox)
        return (await ends(inbox))[0]

    engine.start()
    assert asyncio.run(ask()).finish_reason is FinishReason.LENGTH
    assert engine.failure is None
    engine.stop()
    assert engine.failure is None, "it was stopped, it did not fail"


def test_a_step_that_hangs_can_be_seen_from_outside():
    engine, go_on = engine_of(), threading.Event()
    forward = engine._runner.decoder.forward

    def slow(segments):
        go_on.wait(10)
        return forward(segments)

    engine._runner.decoder.forward = slow
    engine.start()
    assert engine.stalled_seconds == 0 or engine.stalled_seconds < 1

    async def ask() -> Delta:
        inbox: Inbox = asyncio.Queue()
        engine.submit(request_of(engine), inbox)
        await asyncio.to_thread(until, lambda: engine.stalled_seconds > 0.2)
        go_on.set()
        return (await ends(inbox))[0]

    assert asyncio.run(ask()).finish_reason is FinishReason.LENGTH
    until(lambda: engine.stalled_seconds == 0)
    engine.stop()
