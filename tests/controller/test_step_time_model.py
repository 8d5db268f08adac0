"""The latency model against steps whose cost is known."""

from dataclasses import replace

import pytest

from controller import EngineStatus, SequenceStatus, StepRecord, StepTimeModel
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


def truth(rows, sampled, fixed=0.002, stream=1e-10, work=4e-11, read=5e-10):
    """A machine that streams the widest row's weights once and multiplies for every token.

    Keys and values take it five times as long as weights, number by number.
    """
    present = {variant for variant, _, _ in rows}
    both = present == {HALF, SHALLOW}
    # Half the neurons in every layer, or all of them in nine: the union is the whole model, but
    # for the neurons of the three layers that only the narrow variant has.
    union = max(BODY[v] for v in present) + (3 * (256 * 32 * 6 * 4 + 3 * 256 * 512) if both else 0)
    streamed = union + HEAD
    worked = sum(tokens * BODY[v] for v, tokens, _ in rows) + sampled * HEAD
    cached = sum(held * 2 * 32 * sum(v.kv_groups) for v, _, held in rows)
    seconds = fixed + stream * streamed + work * worked + read * cached
    return StepRecord(seconds, tuple(rows), sampled)


def fitted():
    model = StepTimeModel(SHAPE)
    model.fit(
        [
            truth([(v, n, held)], s)
            for v in (BASE, HALF)
            for n, s, held in ((1, 1, 0), (4, 4, 4000), (8, 8, 0), (32, 1, 0), (128, 4, 0))
        ]
    )
    return model


@pytest.mark.parametrize(
    "rows",
    [
        [(BASE, 4, 0)],
        [(SHALLOW, 1, 900)],
        [(BASE, 2, 300), (HALF, 6, 1200)],
        [(HALF, 3, 0), (SHALLOW, 3, 60)],
    ],
)
def test_it_predicts_batches_that_it_was_not_fitted_on(rows):
    record = truth(rows, 3)
    assert fitted().seconds(rows, 3) == pytest.approx(record.seconds, rel=0.02)


def test_a_busier_host_raises_every_prediction_and_an_idle_one_lowers_it_again():
    model = fitted()
    before = model.seconds([(BASE, 4, 0)], 4)

    def feel(factor):
        for _ in range(60):
            record = truth([(HALF, 2, 0)], 2)
            model.observe(StepRecord(record.seconds * factor, record.rows, 2))

    feel(3.0)
    assert model.seconds([(BASE, 4, 0)], 4) == pytest.approx(3 * before, rel=0.05)
    feel(1.0)
    assert model.seconds([(BASE, 4, 0)], 4) == pytest.approx(before, rel=0.05)


def test_one_stalled_step_does_not_rule_what_follows():
    model = fitted()
    before = model.seconds([(BASE, 1, 0)], 1)
    record = truth([(BASE, 1, 0)], 1)
    model.observe(StepRecord(1000 * record.seconds, record.rows, 1))
    assert model.seconds([(BASE, 1, 0)], 1) < 1.5 * before


def test_short_steps_that_are_held_up_say_little_of_long_ones():
    model, long = fitted(), [(BASE, 256, 0)]
    before = model.seconds(long, 1)
    for _ in range(40):
        short, prompt = truth([(BASE, 1, 0)], 1), truth(long, 1)
        model.observe(StepRecord(short.seconds + 0.001, short.rows, 1))
        model.observe(StepRecord(prompt.seconds, prompt.rows, 1))
    by_ratios = 1 + 0.5 * 0.001 / truth([(BASE, 1, 0)], 1).seconds
    assert model.seconds(long, 1) < before * (1 + 0.5 * (by_ratios - 1))


def load(running, waiting=0, output=100, slots=4):
    made = [SequenceStatus(BASE, True, 0, output, output, 50, 150) for _ in range(running)]
    made += [SequenceStatus(BASE, False, 50, output, output, 0, 150) for _ in range(waiting)]
    return EngineStatus(tuple(made), slots, 256, 0, 10_000)


def at_most(tokens):
    return lambda limit: min(limit, tokens)


def test_nobody_waits_while_a_slot_is_free():
    assert Forecast(fitted(), load(3), at_most(100)).wait == 0.0


def test_the_wait_grows_with_the_line_and_with_what_each_answer_writes():
    model = fitted()
    waits = [Forecast(model, load(4, waiting), at_most(100)).wait for waiting in (0, 4, 8, 16)]
    assert waits == sorted(waits)
    assert waits[0] > 0
    step = model.seconds([(BASE, 4, 0)], 4)
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
    assert timing.tpot == pytest.approx(model.seconds([(BASE, 3, 100)], 3))
    more = model.seconds([(BASE, 3, 170)], 3)
    assert timing.tpot + 70 * timing.per_cached == pytest.approx(more)


def test_what_a_variant_reads_of_its_own_counts_once_a_step_and_once_a_row():
    plain, owning = fitted(), StepTimeModel(SHAPE, {HALF.name: 10**7})
    owning._rates = plain._rates
    assert owning.seconds([(BASE, 4, 0)], 4) == plain.seconds([(BASE, 4, 0)], 4)
    more = [owning.seconds([(HALF, n, 0)], n) - plain.seconds([(HALF, n, 0)], n) for n in (1, 9)]
    assert 0 < more[0] <= more[1] < 9 * more[0] + 1e-12


def test_a_variant_with_fewer_groups_reads_less_of_its_cache():
    model, shallow = fitted(), sum(SHALLOW.kv_groups) / sum(BASE.kv_groups)
    assert model.per_cached(SHALLOW) == pytest.approx(shallow * model.per_cached(BASE))
    assert model.per_cached(BASE) == pytest.approx(5e-10 * 2 * 32 * 48, rel=0.02)


def test_what_first_measurements_got_wrong_is_learned_from_steps():
    model = StepTimeModel(SHAPE)
    sizes = ((1, 1, 50), (16, 16, 800), (64, 1, 0))
    # Steps that take long whatever they do, as on a host that has just started.
    model.fit([truth([(v, n, held)], s, fixed=0.01) for v in (BASE, HALF) for n, s, held in sizes])
    wanted = truth([(HALF, 16, 800)], 16).seconds / truth([(BASE, 16, 800)], 16).seconds

    def found():
        return model.seconds([(HALF, 16, 800)], 16) / model.seconds([(BASE, 16, 800)], 16)

    assert found() > 1.1 * wanted
    for step in range(1200):
        rows, prompt = 1 + step % 16, step % 3 * 40
        model.observe(truth([((BASE, HALF)[step % 2], rows + prompt, 50 * rows)], rows))
    assert found() == pytest.approx(wanted, rel=0.03)


def test_a_fit_leaves_predictions_where_the_last_steps_put_them():
    model, rows = fitted(), [(BASE, 4, 100), (HALF, 2, 60)]
    for step in range(600):
        slower = 1.0 if step < 400 else 2.0
        record = truth(rows, 6)
        model.observe(replace(record, seconds=slower * record.seconds))
        if step in (399, 511, 512, 599):
            assert model.seconds(rows, 6) == pytest.approx(slower * record.seconds, rel=0.05)


def test_steps_before_the_first_measurements_teach_nothing():
    model = StepTimeModel(SHAPE)
    for _ in range(300):
        model.observe(truth([(BASE, 1, 0)], 1))
    assert (model.correction, model.seconds([(BASE, 1, 0)], 1)) == (1.0, 0.0)
