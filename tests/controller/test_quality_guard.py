"""The guard over losses in production."""

import random

from controller.quality_guard import QualityGuard


def observe(guard: QualityGuard, mean: float, answers: int, seed: int = 0) -> None:
    chance = random.Random(seed)
    for _ in range(answers):
        guard.observe("v", max(0.0, chance.gauss(mean, 0.05)))


def test_what_the_table_says_is_believed():
    guard = QualityGuard({"v": 0.4})
    observe(guard, 0.42, 300)
    assert guard.is_trusted("v")
    assert guard.loss_correction("v") == 0.0


def test_a_variant_that_loses_more_is_expected_to_until_it_is_back(caplog):
    guard = QualityGuard({"v": 0.4})
    observe(guard, 0.8, 19)
    assert guard.is_trusted("v"), "a few answers are no evidence"
    observe(guard, 0.8, 60)
    assert not guard.is_trusted("v")
    assert 0.35 < guard.loss_correction("v") < 0.45
    assert caplog.messages[0].startswith("v loses 0.")
    observe(guard, 0.4, 300)
    assert guard.is_trusted("v")
    assert guard.loss_correction("v") == 0.0
    assert len(caplog.messages) == 2


def test_a_few_bad_answers_among_many_are_no_evidence():
    guard = QualityGuard({"v": 0.4})
    for index in range(100):
        guard.observe("v", 3.0 if index % 25 == 0 else 0.35)
    assert guard.is_trusted("v")


def test_variants_that_nobody_measured_are_left_alone():
    guard = QualityGuard({})
    observe(guard, 5.0, 100)
    assert guard.is_trusted("v")
