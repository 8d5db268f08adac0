"""The simulated engine against what can be worked out by hand, and against one step at a time."""

import math
import random

import pytest

from policies.simulation.engine import EngineLimits, SimulatedEngine
from policies.simulation.rates import Rates
from policies.simulation.simulated_request import SimulatedRequest
from tests.support.paper import RATES

FLAT = Rates((0.01, 0.005), (0.002, 0.001), (0.0001, 0.00005), (0.0, 0.0))


def run(rows, rates=FLAT, limits=None):
    """Ends of all requests; `rows` are (arrival, action, prompt, output)."""
    ended = {}
    engine = SimulatedEngine(
        rates,
        limits or EngineLimits(4, 64),
        lambda row, clock: ended.setdefault(row.index, (row, clock)),
    )
    for index, (at, action, prompt, output) in enumerate(rows):
        engine.advance(at)
        engine.submit(SimulatedRequest(index, action, at, prompt, output, prompt + output))
    engine.finish()
    return [ended[index] for index in range(len(rows))]


def stepwise(rows, rates, limits):
    """The same, one step at a time and without anything clever: first tokens and ends."""
    clock, coming, waiting, running, ends = 0.0, list(enumerate(rows)), [], [], {}
    while coming or waiting or running:
        if not waiting and not running:
            clock = max(clock, coming[0][1][0])
        while coming and coming[0][1][0] <= clock:
            index, (_, action, prompt, output) = coming.pop(0)
            waiting.append({"i": index, "a": action, "p": prompt, "o": output, "c": prompt})
        while waiting and len(running) < limits.max_running:
            running.append({**waiting.pop(0), "first": None})
        writing = [r for r in running if r["p"] == 0]
        left, streams, seconds = limits.step_tokens - len(writing), [], 0.0
        for row in writing:
            streams.append(rates.stream[row["a"]])
            seconds += rates.row[row["a"]] + rates.cached[row["a"]] * row["c"]
        read = []
        for row in running:
            if row["p"] and left:
                count = min(left, row["p"])
                left -= count
                row["p"] -= count
                streams.append(rates.stream[row["a"]])
                seconds += count * rates.prompt[row["a"]]
                read += [row] * (row["p"] == 0)
        clock += max(streams) + seconds
        for row in [*writing, *read]:
            row["first"] = row["first"] or clock
            row["o"] -= 1
            row["c"] += 1
            if row["o"] == 0:
                running.remove(row)
                ends[row["i"]] = (row["first"], clock)
    return [ends[index] for index in range(len(rows))]


def test_one_request_takes_its_prompt_and_its_tokens():
    ((row, end),) = run([(3.0, 0, 50, 5)])
    first = 3.0 + 0.01 + 50 * 0.0001
    assert row.first_token == pytest.approx(first)
    assert end == pytest.approx(first + 4 * 0.012)


@pytest.mark.parametrize("seed", range(6))
def test_stretches_of_steps_are_the_steps_one_by_one(seed):
    chance = random.Random(seed)
    clock, rows = 0.0, []
    for _ in range(60):
        clock += chance.expovariate(12.0)
        rows.append((clock, chance.randrange(3), chance.randint(4, 90), chance.randint(1, 40)))
    limits = EngineLimits(4, 48)
    found = [(row.first_token, end) for row, end in run(rows, RATES, limits)]
    for (first, end), (wanted, last) in zip(found, stepwise(rows, RATES, limits), strict=True):
        # A stretch ends on the step in which somebody arrives, so only rounding is left.
        assert first == pytest.approx(wanted, abs=2e-6)
        assert end == pytest.approx(last, abs=2e-6)


def test_a_reader_shortens_the_reading_and_nothing_else():
    ends = []
    engine = SimulatedEngine(
        FLAT, EngineLimits(4, 64), lambda row, clock: ends.append((row, clock))
    )
    engine.submit(SimulatedRequest(0, 0, 0.0, 150, 5, 155, reading=0.6))
    wait = engine.predict_wait(engine.running_step())
    assert wait == pytest.approx(3 * 0.01 + 150 * 0.6 * 0.0001)
    assert engine.predict_prefill(engine.running_step(), 0, 150, 0.6) == pytest.approx(wait)
    engine.finish()
    ((row, end),) = ends
    assert row.first_token == pytest.approx(wait)
    assert end - row.first_token == pytest.approx(4 * 0.012)


def test_smaller_variants_drain_the_same_queue_sooner():
    rows = [(0.0, 0, 16, 20)] * 12
    full, half = run(rows)[-1][1], run([(0.0, 1, 16, 20)] * 12)[-1][1]
    assert half == pytest.approx(full / 2)


def test_a_mixed_batch_streams_its_widest_row_once():
    one, both = run([(0.0, 0, 1, 9)])[0][1], run([(0.0, 0, 1, 9), (0.0, 1, 1, 9)])[0][1]
    assert both - one == pytest.approx(8 * 0.001 + 0.00005)


def test_a_stretched_clock_stretches_everything():
    ends = []
    engine = SimulatedEngine(
        FLAT, EngineLimits(4, 64), lambda row, clock: ends.append(clock), lambda s, busy: 2 * s
    )
    engine.submit(SimulatedRequest(0, 0, 0.0, 50, 5, 55))
    engine.finish()
    assert ends[0] == pytest.approx(2 * run([(0.0, 0, 50, 5)])[0][1])


def test_the_predicted_wait_is_about_the_wait():
    engine = SimulatedEngine(FLAT, EngineLimits(4, 64), lambda row, clock: None)
    for index in range(40):
        engine.submit(SimulatedRequest(index, 0, 0.0, 16, 20, 36, expected=20.0))
    engine.advance(0.05)
    predicted = engine.predict_wait(engine.running_step())
    last = SimulatedRequest(40, 0, engine.clock, 16, 20, 36)
    engine.submit(last)
    engine.finish()
    assert last.started - last.arrived == pytest.approx(predicted, rel=0.2)
    assert engine.predict_wait(engine.running_step()) == 0.0
    assert engine.kv_promised == 0
    assert math.isclose(engine._row_seconds, 0.0)
