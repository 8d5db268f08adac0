"""The engine's thread writes what the event loop reads: step times, and measured losses."""

import math
import random
import sys
import threading
import time
from collections.abc import Callable

import pytest

from controller import SequenceStatus, StepRecord
from controller.engine_status import EngineStatus
from controller.forecast import Forecast
from controller.quality_guard import QualityGuard
from controller.reading import IncomingPrompt, ServedChoice
from policies.candidates import RequestTokens
from tests.support.controlled_host import ControlledHost, decide
from tests.support.step_times import BASE, HALF, SHALLOW, fitted_model, measured_step

SECONDS = 0.4
TOKENS = RequestTokens(300, 100)
VARIANTS = (BASE, HALF, SHALLOW)
CHOICES = [ServedChoice(variant) for variant in VARIANTS]
STEPS = [
    measured_step([(variant, rows, 50 * rows)], rows) for variant in VARIANTS for rows in (1, 4, 64)
]
STATUS = EngineStatus(
    tuple(SequenceStatus(VARIANTS[i % 3], i < 4, 40, 200, 200, 64, 264) for i in range(9)),
    4, 256, 256, 4096,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _frequent_switches():
    """Let threads interrupt each other a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def run_beside(write: Callable[[int], None], read: Callable[[], None]) -> int:
    """Call `write` in another thread while this one calls `read`; return the number of writes."""
    stop, errors, writes = threading.Event(), [], 0

    def write_all() -> None:
        nonlocal writes
        try:
            while not stop.is_set():
                write(writes)
                writes += 1
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=write_all)
    thread.start()
    end = time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            read()
    finally:
        stop.set()
        thread.join()
    assert errors == []
    return writes


def observe_step(model, number: int) -> None:
    """Add a step of a host that is slowed down up to four times, and back again."""
    record = STEPS[number % len(STEPS)]
    slower = 2.5 + 1.5 * math.sin(number / 20)
    model.observe(StepRecord(slower * record.seconds, record.rows, record.sampled))


def test_a_forecast_does_not_change_while_steps_are_observed():
    model = fitted_model()
    corrections = set()

    def read() -> None:
        forecast = Forecast(model.now, STATUS, lambda limit: min(limit, 90))
        prompt = IncomingPrompt(TOKENS.prompt)
        first = forecast.by_choice(CHOICES, TOKENS, prompt, 1.0)
        second = forecast.by_choice(CHOICES, TOKENS, prompt, 1.0)
        assert first == second
        assert all(
            math.isfinite(value) and value > 0
            for one in first.values()
            for value in (one.ttft, one.tpot, one.tpot_per_cached, one.cost)
        )
        corrections.add(model.correction)

    writes = run_beside(lambda number: observe_step(model, number), read)
    assert writes > 300, "with refits"
    assert len(corrections) > 10, "the model did change meanwhile"


def test_decisions_are_consistent_while_steps_and_losses_are_observed(monkeypatch):
    """Without refits one factor scales all step times, so that their ratios are constant."""
    monkeypatch.setattr("controller.step_time_model._REFIT_AFTER", 10**9)
    host = ControlledHost()
    host.status = STATUS
    controller = host.controller(load=0.9)
    generator = random.Random(0)
    times = {c.action: c.tpot for c in decide(controller, prompt=300).observation.candidates}

    def write(number: int) -> None:
        observe_step(controller.step_time_model, number)
        mean = 4.0 if number // 400 % 2 else 0.5
        controller.quality_guard.observe("ffn-50", abs(generator.gauss(mean, 0.05)))

    def read() -> None:
        observation = decide(controller, prompt=300).observation
        assert all(math.isfinite(c.total) and c.total > 0 for c in observation.candidates)
        factors = [c.tpot / times[c.action] for c in observation.candidates]
        assert min(factors) == pytest.approx(max(factors), rel=1e-9)

    assert run_beside(write, read) > 100


def test_corrections_of_losses_are_whole_while_losses_are_observed():
    guard = QualityGuard({"v": 0.4, "w": 0.4})

    def write(number: int) -> None:
        mean = 0.8 if number // 300 % 2 else 0.3
        guard.observe("vw"[number % 2], mean + 0.01 * (number % 7))

    def read() -> None:
        for variant in "vw":
            # Not trusted means raised by more than the allowed excess, at most by the mean.
            assert 0.0 <= guard.loss_correction(variant) < 0.5
            guard.is_trusted(variant)

    assert run_beside(write, read) > 300
