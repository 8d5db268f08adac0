"""What a profile says of readers, on disk and by a prompt's length."""

import json
from dataclasses import replace

import pytest

from policies.simulation.profile import ProfileError, load_profile
from policies.simulation.reader_profile import ReaderProfile
from tests.support.paper import READERS, profile


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
    del body["readers"]
    path.write_text(json.dumps(body))
    assert load_profile(tmp_path).readers == ()
    assert load_profile(tmp_path).identity == "78b1c179922dd1f4b899adcdea5b774d", "as it was then"


def test_the_time_of_reading_is_found_again_from_the_shares_that_it_makes():
    time = READERS[0].time()
    assert time == pytest.approx((0.7, 16.0))
    assert time.share(1600) == pytest.approx(0.71)
    assert time.share(20) == time.share(0) == 1.0, "short prompts are read in full"
    flat = replace(READERS[0], seconds={128: 0.6, 1024: 0.7})
    assert flat.time() == pytest.approx((0.65, 0.0))
    assert replace(READERS[0], seconds={512: 0.6}).time() == pytest.approx((0.6, 0.0))


@pytest.mark.parametrize(("tokens", "loss"), [(1, 0.02), (59, 0.02), (60, 0.05), (5000, 0.05)])
def test_the_loss_is_that_of_the_prompt_s_length(tokens, loss):
    assert READERS[0].loss_at(tokens) == loss


def test_prompts_shorter_than_any_measured_lose_as_the_shortest():
    assert replace(READERS[0], loss={256: 0.3, 1024: 0.4}).loss_at(10) == 0.3


DAMAGE = {
    "twice": ({"name": "quicker"}, "different names"),
    "a variant's name": ({"name": "half"}, "different names"),
    "no times": ({"seconds": {}}, "no measured times"),
    "negative loss": ({"loss": {"0": -0.1}}, "negative loss"),
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


def test_a_reader_is_its_measurements():
    assert ReaderProfile("quick", {1: 1.0}, {0: 0.0}, {}, True).time().share(9) == 1.0
