"""The latency model against steps whose cost is known."""

import pytest

from controller import EngineLoad, SequenceLoad, StepModel, StepRecord
from controller.forecast import Forecast
from pruners.architecture import Shape
from pruners.variant import base_spec, depth_spec, width_spec

SHAPE = Shape(layers=12, hidden=256, heads=8, kv_groups=4, head_dim=32, ffn=1024, vocab=8000)
BASE, HALF, SHALLOW = base_spec(SHAPE), width_spec(SHAPE, 0.5), depth_spec(SHAPE, [3, 4, 5])
HEAD = 256 * 8000
BODY = {BASE: 0, HALF: 0, SHALLOW: 0}
for spec in BODY:
    groups = sum(spec.kv_groups) * (256 * 32 * (2 * 2 + 2))
    BODY[spec] = groups + 3 * 256 * sum(spec.ffn)


def truth(rows, sampled, fixed=0.002, stream=1e-10, work=4e-11):
    """A machine that streams the widest row's weights once and multiplies for every token."""
    present = {variant for variant, _ in rows}
    both = present == {HALF, SHALLOW}
    # Half the neurons in every layer, or all of them in nine: the union is the whole model, but
    # for the neurons of the three layers that only the narrow variant has.
    union = max(BODY[v] for v in present) + (3 * (256 * 32 * 6 * 4 + 3 * 256 * 512) if both else 0)
    streamed = union + HEAD
    worked = sum(tokens * BODY[v] for v, tokens in rows) + sampled * HEAD
    return StepRecord(fixed + stream * streamed + work * worked, tuple(rows), sampled, 0)


def fitted():
    model = StepModel(SHAPE)
    model.fit(
        [truth([(v, n)], s) for v in (BASE, HALF) for n, s in ((1, 1), (8, 8), (32, 1), (128, 4))]
    )
    return model


@pytest.mark.parametrize(
    "rows", [[(BASE, 4)], [(SHALLOW, 1)], [(BASE, 2), (HALF, 6)], [(HALF, 3), (SHALLOW, 3)]]
)
def test_it_predicts_batches_that_it_was_not_fitted_on(rows):
    record = truth(rows, 3)
    assert fitted().seconds(rows, 3, 0) == pytest.approx(record.seconds, rel=0.02)


def test_a_busier_host_raises_every_prediction_and_an_idle_one_lowers_it_again():
    model = fitted()
    before = model.seconds([(BASE, 4)], 4, 0)

    def feel(factor):
        for _ in range(60):
            record = truth([(HALF, 2)], 2)
            model.observe(StepRecord(record.seconds * factor, record.rows, 2, 0))

    feel(3.0)
    assert model.seconds([(BASE, 4)], 4, 0) == pytest.approx(3 * before, rel=0.05)
    feel(1.0)
    assert model.seconds([(BASE, 4)], 4, 0) == pytest.approx(before, rel=0.05)


def test_one_stalled_step_does_not_rule_what_follows():
    model = fitted()
    before = model.seconds([(BASE, 1)], 1, 0)
    record = truth([(BASE, 1)], 1)
    model.observe(StepRecord(1000 * record.seconds, record.rows, 1, 0))
    assert model.seconds([(BASE, 1)], 1, 0) < 1.5 * before


def test_short_steps_that_are_held_up_say_little_of_long_ones():
    model, long = fitted(), [(BASE, 256)]
    before = model.seconds(long, 1, 0)
    for _ in range(40):
        short, prompt = truth([(BASE, 1)], 1), truth(long, 1)
        model.observe(StepRecord(short.seconds + 0.001, short.rows, 1, 0))
        model.observe(StepRecord(prompt.seconds, prompt.rows, 1, 0))
    by_ratios = 1 + 0.5 * 0.001 / truth([(BASE, 1)], 1).seconds
    assert model.seconds(long, 1, 0) < before * (1 + 0.5 * (by_ratios - 1))


def load(running, waiting=0, output=100, slots=4):
    made = [SequenceLoad(BASE, True, 0, output, output, 50, 150) for _ in range(running)]
    made += [SequenceLoad(BASE, False, 50, output, output, 0, 150) for _ in range(waiting)]
    return EngineLoad(tuple(made), slots, 256, 0, 10_000)


def at_most(tokens):
    return lambda limit: min(limit, tokens)


def test_nobody_waits_while_a_slot_is_free():
    assert Forecast(fitted(), load(3), at_most(100)).wait == 0.0


def test_the_wait_grows_with_the_line_and_with_what_each_answer_writes():
    model = fitted()
    waits = [Forecast(model, load(4, waiting), at_most(100)).wait for waiting in (0, 4, 8, 16)]
    assert waits == sorted(waits)
    assert waits[0] > 0
    step = model.seconds([(BASE, 4)] * 1, 4, 0)
    # Sixteen in line, four at a time, a hundred steps each: about four rounds and a bit.
    assert 350 * step < waits[3] < 600 * step
    assert Forecast(model, load(4, 8), at_most(10)).wait < 0.3 * waits[2]


def test_smaller_variants_cost_less_and_answer_sooner():
    forecast = Forecast(fitted(), load(2), at_most(100))
    base, half, shallow = forecast.timings([BASE, HALF, SHALLOW], 200, 100, {})
    assert half.cost < shallow.cost < base.cost == pytest.approx(1.0)
    assert half.ttft < base.ttft
    alone, quicker = Forecast(fitted(), load(0), at_most(100)).timings([BASE, HALF], 10, 100, {})
    assert quicker.tpot < alone.tpot


def test_what_is_cached_of_a_prompt_is_not_read_again():
    forecast = Forecast(fitted(), load(2), at_most(100))
    (whole,) = forecast.timings([BASE], 200, 100, {})
    (rest,) = forecast.timings([BASE], 50, 100, {})
    (known, half) = forecast.timings([BASE, HALF], 200, 100, {BASE.name: 150})
    assert known.ttft == rest.ttft < whole.ttft
    assert half.ttft == forecast.timings([HALF], 200, 100, {})[0].ttft
    # Its keys and values are still read with every token that is written.
    saved = forecast.work(BASE, 200, 100, 0) - forecast.work(BASE, 200, 100, 150)
    fewer = forecast.work(BASE, 200, 100, 0) - forecast.work(BASE, 50, 100, 0)
    assert 0 < saved < fewer


def test_a_cached_token_adds_what_a_step_says_it_does():
    model = fitted()
    (timing,) = Forecast(model, load(2), at_most(100)).timings([BASE], 10, 100, {})
    rows = [(BASE, 3)]
    assert timing.tpot == pytest.approx(model.seconds(rows, 3, 100))
    assert timing.tpot + 70 * timing.per_cached == pytest.approx(model.seconds(rows, 3, 170))


def test_what_a_variant_reads_of_its_own_counts_once_a_step_and_once_a_row():
    plain, owning = fitted(), StepModel(SHAPE, {HALF.name: 10**7})
    owning._coefficients = plain._coefficients
    assert owning.seconds([(BASE, 4)], 4, 0) == plain.seconds([(BASE, 4)], 4, 0)
    more = [owning.seconds([(HALF, n)], n, 0) - plain.seconds([(HALF, n)], n, 0) for n in (1, 9)]
    assert 0 < more[0] <= more[1] < 9 * more[0] + 1e-12
