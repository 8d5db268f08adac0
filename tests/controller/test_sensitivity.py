"""The sensitivity predictor on losses whose cause is known."""

import json
import random
from dataclasses import replace

import pytest

from controller import Analyzer
from controller.cross_validation import cross_validate
from controller.sensitivity import FILE, SensitivityError, fit, load_sensitivity
from pruners.data.readers import ReadError
from pruners.support.errors import UserError

TEXT = "why is the sky so blue tell me more about it please and count 3 4 5 then explain"


def prompts(count: int = 160, seed: int = 0):
    chance = random.Random(seed)
    analyze = Analyzer()
    texts = [" ".join(chance.choices(TEXT.split(), k=chance.randint(3, 60))) for _ in range(count)]
    return [analyze(text) for text in texts]


def losses(features, noise: float, seed: int = 1) -> dict[str, list[float]]:
    """Numbers in the prompt make `a` lose; nothing in it says what `b` loses."""
    chance = random.Random(seed)
    return {
        "a": [0.4 + 0.03 * f.numbers + abs(chance.gauss(0, noise)) for f in features],
        "b": [0.8 + abs(chance.gauss(0, 0.2)) for _ in features],
    }


@pytest.mark.slow
def test_it_finds_what_makes_a_prompt_sensitive_and_says_what_it_is_worth():
    features = prompts()
    lost = losses(features, noise=0.02)
    report = cross_validate(features, lost, prompt_loss=[2.0 + loss for loss in lost["b"]])
    assert report["a"]["all"]["r2"] > 0.6
    assert report["a"]["all"]["rho"] > 0.7
    assert 0.7 < report["a"]["all"]["gain"] <= 1.0
    assert report["a"]["all"]["over_random"][0] > 0
    assert report["b"]["all"]["r2"] < 0.1
    assert report["b"]["all+loss"]["r2"] > 0.9, "the base's own loss on the prompt tells it"
    low, high = report["b"]["all"]["over_random"]
    assert low < 0 < high, "there is nothing to find"


def test_predictions_are_about_this_prompt_and_stay_near_the_mean():
    features = prompts()
    model = fit(features, losses(features, 0.02), "f", "patterns")
    few, many = (replace(features[0], numbers=n) for n in (0, 15))
    assert model.relative(few)["a"] < 1 < model.relative(many)["a"]
    assert model.relative(replace(features[0], numbers=10**6))["a"] == 3.0
    assert all(ratio > 0 for one in features for ratio in model.relative(one).values())


def test_a_feature_that_is_missing_says_nothing():
    features = [replace(f, verbs=i % 7) for i, f in enumerate(prompts())]
    model = fit(features, losses(features, 0.02), "f", "spacy")
    without = model.relative(replace(features[0], verbs=None))
    assert without["a"] == pytest.approx(model.relative(features[0])["a"], rel=0.2)
    nothing = fit(prompts(), losses(prompts(), 0.02), "f", "patterns")  # verbs are never known
    assert nothing.relative(features[0])["a"] > 0


def test_round_trip_and_refusals(tmp_path):
    assert load_sensitivity(tmp_path, "f") is None
    features = prompts()
    model = fit(features, losses(features, 0.02), "f", "patterns")
    path = model.save(tmp_path)
    loaded = load_sensitivity(tmp_path, "f")
    assert loaded.relative(features[3]) == model.relative(features[3])
    with pytest.raises(SensitivityError, match="another model"):
        load_sensitivity(tmp_path, "g")
    sound = json.loads(path.read_text())
    for change in (
        {"schema": 99}, {"features": []}, {"mean": [0.0]}, {"scale": [float("nan")] * 15},
        {"weights": {}}, {"level": 3}, {"scale": [0.0] * 15}, {"mean": ["0"] * 15}, {"more": 1},
        {"level": {"a": 0.0, "b": 1.0}},
    ):  # fmt: skip
        (tmp_path / FILE).write_text(json.dumps(sound | change))
        with pytest.raises(UserError, match=FILE):
            load_sensitivity(tmp_path, "f")
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ReadError, match="not JSON"):
        load_sensitivity(tmp_path, "f")
