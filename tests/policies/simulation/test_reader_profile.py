"""What a profile says of readers, on disk and by a prompt's length."""

import json
from dataclasses import replace

import numpy as np
import pytest

from policies.simulation.choices import choice_labels, losses_by_choice, profile_choices
from policies.simulation.profile import ProfileError, load_profile
from tests.support.paper import CHOICES, RATES, READERS, VARIANTS, profile


def test_readers_come_back_and_change_the_identity(tmp_path):
    made = profile(readers=READERS)
    made.save(tmp_path)
    found = load_profile(tmp_path)
    assert found.readers == READERS
    assert found.identity == made.identity != profile().identity
    slower = replace(READERS[0], seconds={128: 0.9})
    assert profile(readers=(slower, READERS[1])).identity != made.identity


def test_a_profile_from_before_there_were_readers_is_one_without(tmp_path):
    profile(noise=0.0).save(tmp_path)
    path = tmp_path / "profile.json"
    body = json.loads(path.read_text())
    for name in ("readers", "pairs", "keep_tasks"):
        del body[name]
    path.write_text(json.dumps(body))
    assert load_profile(tmp_path).readers == ()
    assert load_profile(tmp_path).identity == "78b1c179922dd1f4b899adcdea5b774d", "as it was then"


def test_the_time_of_reading_is_found_again_from_the_shares_that_it_makes():
    time = READERS[0].time()
    assert time == pytest.approx((0.7, 16.0))
    assert time.share(1600) == pytest.approx(0.71)
    assert time.share(40) == time.share(0) == 1.0, "short prompts are read in full"
    flat = replace(READERS[0], seconds={128: 0.6, 1024: 0.7})
    assert flat.time() == pytest.approx((0.65, 0.0))
    assert replace(READERS[0], seconds={512: 0.6}).time() == pytest.approx((0.6, 0.0))


def test_the_loss_is_that_of_the_prompt_s_length():
    found = READERS[0].losses([1, 60, 61, 2000, 5000])
    assert found.tolist() == [0.02, 0.02, 0.05, 0.05, 0.05]


def test_choices_are_the_base_with_readers_then_variants_then_pairs():
    choices = profile_choices(profile(readers=READERS))
    assert choice_labels(choices) == CHOICES
    assert choice_labels(profile_choices(profile())) == VARIANTS
    plain = profile(readers=READERS).without_readers()
    assert plain.identity == profile().identity
    losses = np.array([[0.0, 0.3, 1.2], [0.0, 0.4, 1.0]])
    found = losses_by_choice(choices, losses, [50, 500])
    np.testing.assert_allclose(found[:, :3], [[0.0, 0.02, 0.1], [0.0, 0.05, 0.2]])
    np.testing.assert_allclose(found[:, 3:], [[0.3, 1.2, 0.32], [0.4, 1.0, 0.45]])


def test_a_reader_shortens_the_reading_alone():
    base, quick, *_ = profile_choices(profile(readers=READERS))
    whole, read = (one.work(RATES, 320, 40, 8) for one in (base, quick))
    assert whole - read == pytest.approx((1 - 0.75) * 320 * RATES.prompt[0])
    assert quick.work(RATES, 40, 40, 8) == base.work(RATES, 40, 40, 8)


DAMAGE = {
    "twice": ({"name": "quicker"}, "different names"),
    "a variant's name": ({"name": "half"}, "different names"),
    "no times": ({"seconds": {}}, "no measured times"),
    "negative loss": ({"loss": {"9": -0.1}}, "negative loss"),
    "no loss": ({"loss": {}}, "no measured times"),
    "no share": ({"tasks": {"passkey": 1.5}}, r"readers\.0\.tasks\.passkey"),
    "no length": ({"seconds": {"many": 0.5}}, r"readers\.0\.seconds\.many"),
    "more": ({"more": 1}, r"readers\.0\.more"),
}


@pytest.mark.parametrize(("changes", "says"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_reader_that_cannot_be_is_refused(tmp_path, changes, says):
    profile(readers=READERS).save(tmp_path)
    path = tmp_path / "profile.json"
    body = json.loads(path.read_text())
    body["readers"][0] |= changes
    path.write_text(json.dumps(body))
    with pytest.raises(ProfileError, match=says):
        load_profile(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pairs": [["half", "slow"]]}, "no pair of a variant half and a reader slow"),
        ({"pairs": [["base", "quick"]]}, "no pair"),
        ({"keep_tasks": ["base", "tenth+quick"]}, r"tenth\+quick, which is no choice"),
    ],
)
def test_choices_that_are_none_are_refused(tmp_path, changes, says):
    profile(readers=READERS).save(tmp_path)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ProfileError, match=says):
        load_profile(tmp_path)
