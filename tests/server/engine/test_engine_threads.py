"""Other threads read the engine's state and submit requests while its thread steps."""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from server.engine.engine import Engine, Inbox
from server.engine.options import EngineOptions
from server.engine.sequence import FinishReason, GenerationRequest
from tests.support.driving import GREEDY, TOKENIZER, runner_of, variants_of, weights_of
from tests.support.tiny import tiny_model

SECONDS = 1.0
TEXTS = [tuple(range(start, start + 40)) for start in (3, 20, 40)]


@pytest.fixture
def often_switching_threads() -> Iterator[None]:
    """Let Python switch threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def check_status(engine: Engine) -> None:
    """Read the status and compare its figures with each other."""
    status = engine.status()
    assert 0 <= status.kv_used <= status.kv_capacity
    assert status.running <= status.max_running
    for sequence in status.sequences:
        assert 0 <= sequence.prompt_left <= 40 + sequence.output_most
        assert 0 <= sequence.output_left <= sequence.output_most
        assert 0 <= sequence.cached <= sequence.cache_limit
        assert sequence.running or sequence.output_left > 0


def check_reusable(engine: Engine) -> None:
    for text in TEXTS:
        assert all(16 <= length < len(text) for length in engine.reusable(text).values())


def read_until(deadline: float, engine: Engine, errors: list[BaseException]) -> None:
    try:
        while time.monotonic() < deadline:
            check_status(engine)
            check_reusable(engine)
            assert engine.alive
            assert engine.stalled_seconds < 10
    except BaseException as error:
        errors.append(error)


async def submit_until(deadline: float, engine: Engine) -> tuple[int, list[FinishReason]]:
    """Submit, narrow and cancel requests; return how many there were and how they ended."""
    choose, inbox = random.Random(1), Inbox()
    variants = variants_of(engine._runner.decoder.weights)
    submitted, reasons = 0, list[FinishReason]()
    while time.monotonic() < deadline or len(reasons) < submitted:
        while time.monotonic() < deadline and submitted - len(reasons) < 6:
            variant = variants[choose.choice(["base", "ffn-75"])]
            tokens = choose.choice([3, 30])
            request = GenerationRequest("one", choose.choice(TEXTS), tokens, variant, None, GREEDY)
            generation = engine.submit(request, inbox)
            submitted += 1
            action = choose.random()
            if action < 0.2:
                generation.cancel()
            elif action < 0.4 and generation.sequence.may_narrow(variants["ffn-50"]):
                generation.narrow(variants["ffn-50"])
        _, delta = await asyncio.wait_for(inbox.get(), 10)
        if delta.finish_reason is not None:
            reasons.append(delta.finish_reason)
    return submitted, reasons


@pytest.mark.slow
def test_readers_see_consistent_figures_while_the_engine_steps(often_switching_threads):
    runner = runner_of(weights_of(tiny_model()), capacity=512, running=4)
    engine = Engine(runner, TOKENIZER, EngineOptions(100, 100_000))
    errors: list[BaseException] = []
    deadline = time.monotonic() + SECONDS
    readers = [
        threading.Thread(target=read_until, args=(deadline, engine, errors)) for _ in range(2)
    ]
    engine.start()
    for reader in readers:
        reader.start()
    submitted, reasons = asyncio.run(submit_until(deadline, engine))
    for reader in readers:
        reader.join()
    status = engine.status()
    engine.stop()
    assert not errors, errors[0]
    assert len(reasons) == submitted > 0
    assert set(reasons) <= {FinishReason.LENGTH, FinishReason.STOP, FinishReason.ABORT}
    assert not status.sequences
    assert status.kv_used == 0
