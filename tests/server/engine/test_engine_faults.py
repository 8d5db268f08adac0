"""What goes wrong inside the engine's thread is heard of outside, at once and by everybody."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from server.engine.engine import Engine, EngineStoppedError, Inbox
from server.engine.options import EngineOptions
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


@pytest.mark.parametrize("damage", [break_make_way, break_add, break_step])
def test_a_dead_engine_says_why_and_ends_every_request(damage):
    engine = engine_of()

    async def ask() -> tuple[list[Delta], float]:
        inbox: Inbox = asyncio.Queue()
        engine.submit(request_of(engine, tokens=400), inbox)
        while (await asyncio.wait_for(inbox.get(), 10))[1].finish_reason is not None:
            pass  # it runs
        damage(engine)
        started = time.monotonic()
        engine.submit(request_of(engine), inbox)
        found = await ends(inbox, 2)
        return found, time.monotonic() - started

    engine.start()
    found, seconds = asyncio.run(ask())
    assert [delta.finish_reason for delta in found] == [FinishReason.ERROR] * 2
    assert seconds < 1
    assert engine.failure is not None
    assert engine.failure == found[0].error
    assert not engine.alive
    until(lambda: not engine._thread.is_alive())
    with pytest.raises(EngineStoppedError):
        asyncio.run(submitted(engine))


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
