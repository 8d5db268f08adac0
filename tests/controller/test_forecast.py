"""Forecasts for a request against engines whose state is known."""

import pytest

from controller import EngineStatus, SequenceStatus
from controller.forecast import Forecast
from controller.reading import IncomingPrompt, ServedChoice
from policies.candidates import RequestTokens
from tests.support.step_times import BASE, HALF, SHALLOW, fitted_model


def status(running, waiting=0, output=100, slots=4):
    sequences = [SequenceStatus(BASE, True, 0, output, output, 50, 150) for _ in range(running)]
    sequences += [SequenceStatus(BASE, False, 50, output, output, 0, 150) for _ in range(waiting)]
    return EngineStatus(tuple(sequences), slots, 256, 0, 10_000)


def at_most(tokens):
    return lambda limit: min(limit, tokens)


def forecasts(forecast, variants, prompt, cached_prefix=None):
    tokens = RequestTokens(prompt, 100)
    choices = [ServedChoice(variant) for variant in variants]
    reusable = {(name, None): count for name, count in (cached_prefix or {}).items()}
    work = forecast.work(BASE, tokens, reusable.get((BASE.name, None), 0))
    incoming = IncomingPrompt(prompt, reusable)
    return list(forecast.by_choice(choices, tokens, incoming, work).values())


def test_nobody_waits_while_a_slot_is_free():
    assert Forecast(fitted_model().now, status(3), at_most(100)).wait == 0.0


def test_the_wait_grows_with_the_queue_and_with_the_length_of_answers():
    model = fitted_model()
    waits = [
        Forecast(model.now, status(4, waiting), at_most(100)).wait for waiting in (0, 4, 8, 16)
    ]
    assert waits == sorted(waits)
    assert waits[0] > 0
    step = model.seconds([(BASE, 4, 0)], 4)
    # Sixteen in line, four at a time, a hundred steps each: about four rounds and a bit.
    assert 350 * step < waits[3] < 600 * step
    assert Forecast(model.now, status(4, 8), at_most(10)).wait < 0.3 * waits[2]


def test_smaller_variants_cost_less_and_answer_sooner():
    busy = Forecast(fitted_model().now, status(2), at_most(100))
    base, half, shallow = forecasts(busy, [BASE, HALF, SHALLOW], 200)
    assert half.cost < shallow.cost < base.cost == pytest.approx(1.0)
    assert half.ttft < base.ttft
    idle = Forecast(fitted_model().now, status(0), at_most(100))
    base, half = forecasts(idle, [BASE, HALF], 10)
    assert half.tpot < base.tpot


def test_a_cached_prefix_is_not_read_again():
    forecast = Forecast(fitted_model().now, status(2), at_most(100))
    (whole,) = forecasts(forecast, [BASE], 200)
    (short,) = forecasts(forecast, [BASE], 50)
    (cached, half) = forecasts(forecast, [BASE, HALF], 200, {BASE.name: 150})
    assert cached.ttft == short.ttft < whole.ttft == cached.ttft_uncached
    assert half.ttft == forecasts(forecast, [HALF], 200)[0].ttft
    # Its keys and values are still read with every token that is written.
    long, brief = RequestTokens(200, 100), RequestTokens(50, 100)
    saved = forecast.work(BASE, long, 0) - forecast.work(BASE, long, 150)
    fewer = forecast.work(BASE, long, 0) - forecast.work(BASE, brief, 0)
    assert 0 < saved < fewer


def test_a_cached_token_adds_what_the_step_time_model_says():
    model = fitted_model()
    (forecast,) = forecasts(Forecast(model.now, status(2), at_most(100)), [BASE], 10)
    assert forecast.tpot == pytest.approx(model.seconds([(BASE, 3, 100)], 3))
    more = model.seconds([(BASE, 3, 170)], 3)
    assert forecast.tpot + 70 * forecast.tpot_per_cached == pytest.approx(more)
