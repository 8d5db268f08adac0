"""The step-time model against steps whose durations are known."""

from dataclasses import replace

import pytest

from controller import StepRecord, StepTimeModel
from tests.support.step_times import BASE, HALF, SHALLOW, SHAPE, fitted_model, measured_step


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
    record = measured_step(rows, 3)
    assert fitted_model().seconds(rows, 3) == pytest.approx(record.seconds, rel=0.02)


def test_a_busier_host_raises_every_prediction_and_an_idle_one_lowers_it_again():
    model = fitted_model()
    before = model.seconds([(BASE, 4, 0)], 4)

    def feel(factor):
        for _ in range(60):
            record = measured_step([(HALF, 2, 0)], 2)
            model.observe(StepRecord(record.seconds * factor, record.rows, 2))

    feel(3.0)
    assert model.seconds([(BASE, 4, 0)], 4) == pytest.approx(3 * before, rel=0.05)
    feel(1.0)
    assert model.seconds([(BASE, 4, 0)], 4) == pytest.approx(before, rel=0.05)


def test_one_stalled_step_does_not_rule_what_follows():
    model = fitted_model()
    before = model.seconds([(BASE, 1, 0)], 1)
    record = measured_step([(BASE, 1, 0)], 1)
    model.observe(StepRecord(1000 * record.seconds, record.rows, 1))
    assert model.seconds([(BASE, 1, 0)], 1) < 1.5 * before


def test_short_steps_that_are_held_up_say_little_of_long_ones():
    model, long = fitted_model(), [(BASE, 256, 0)]
    before = model.seconds(long, 1)
    for _ in range(40):
        short, prompt = measured_step([(BASE, 1, 0)], 1), measured_step(long, 1)
        model.observe(StepRecord(short.seconds + 0.001, short.rows, 1))
        model.observe(StepRecord(prompt.seconds, prompt.rows, 1))
    by_ratios = 1 + 0.5 * 0.001 / measured_step([(BASE, 1, 0)], 1).seconds
    assert model.seconds(long, 1) < before * (1 + 0.5 * (by_ratios - 1))


def test_what_a_variant_reads_of_its_own_counts_once_a_step_and_once_a_row():
    plain, owning = fitted_model(), StepTimeModel(SHAPE, {HALF.name: 10**7})
    owning.now = owning._predictor(plain.now.coefficients, plain.now.correction)
    assert owning.seconds([(BASE, 4, 0)], 4) == plain.seconds([(BASE, 4, 0)], 4)
    more = [owning.seconds([(HALF, n, 0)], n) - plain.seconds([(HALF, n, 0)], n) for n in (1, 9)]
    assert 0 < more[0] <= more[1] < 9 * more[0] + 1e-12


def test_a_variant_with_fewer_groups_reads_less_of_its_cache():
    model, shallow = fitted_model(), sum(SHALLOW.kv_groups) / sum(BASE.kv_groups)
    assert model.per_cached(SHALLOW) == pytest.approx(shallow * model.per_cached(BASE))
    assert model.per_cached(BASE) == pytest.approx(5e-10 * 2 * 32 * 48, rel=0.02)


def test_what_first_measurements_got_wrong_is_learned_from_steps():
    model = StepTimeModel(SHAPE)
    sizes = ((1, 1, 50), (16, 16, 800), (64, 1, 0))
    # Steps that take long whatever they do, as on a host that has just started.
    model.fit(
        [
            measured_step([(v, n, cached)], s, fixed=0.01)
            for v in (BASE, HALF)
            for n, s, cached in sizes
        ]
    )
    wanted = (
        measured_step([(HALF, 16, 800)], 16).seconds / measured_step([(BASE, 16, 800)], 16).seconds
    )

    def found():
        return model.seconds([(HALF, 16, 800)], 16) / model.seconds([(BASE, 16, 800)], 16)

    assert found() > 1.1 * wanted
    for step in range(1200):
        rows, prompt = 1 + step % 16, step % 3 * 40
        model.observe(measured_step([((BASE, HALF)[step % 2], rows + prompt, 50 * rows)], rows))
    assert found() == pytest.approx(wanted, rel=0.03)


def test_a_fit_leaves_predictions_where_the_last_steps_put_them():
    model, rows = fitted_model(), [(BASE, 4, 100), (HALF, 2, 60)]
    for step in range(600):
        slower = 1.0 if step < 400 else 2.0
        record = measured_step(rows, 6)
        model.observe(replace(record, seconds=slower * record.seconds))
        if step in (399, 511, 512, 599):
            assert model.seconds(rows, 6) == pytest.approx(slower * record.seconds, rel=0.05)


def test_steps_before_the_first_measurements_teach_nothing():
    model = StepTimeModel(SHAPE)
    for _ in range(300):
        model.observe(measured_step([(BASE, 1, 0)], 1))
    assert (model.correction, model.seconds([(BASE, 1, 0)], 1)) == (1.0, 0.0)
