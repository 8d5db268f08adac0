"""A trained policy comes back as it was saved, and only where it belongs."""

import json

import pytest

from policies import RuleSettings
from policies.bundle import Bundle, PolicyError, actions_hash, load_policy

ACTIONS = actions_hash(["base", "ffn-50"])


def saved(folder, **changes):
    made = {"fingerprint": "model", "actions": ACTIONS, "promoted": True}
    Bundle(settings=RuleSettings(headroom=0.8), report={}, **{**made, **changes}).save(folder)
    return folder


def test_round_trip(tmp_path):
    policy = load_policy(saved(tmp_path), "model", ACTIONS)
    assert policy._settings == RuleSettings(headroom=0.8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fingerprint": "other"}, "another model"),
        ({"actions": "other"}, "other variants"),
        ({"promoted": False}, "did not beat"),
    ],
)
def test_a_policy_that_does_not_belong_is_refused(tmp_path, changes, says):
    with pytest.raises(PolicyError, match=says):
        load_policy(saved(tmp_path, **changes), "model", ACTIONS)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": {"nope": 1}}'])
def test_a_damaged_policy_is_refused_in_one_line(tmp_path, text):
    saved(tmp_path)
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(PolicyError) as error:
        load_policy(tmp_path, "model", ACTIONS)
    assert "\n" not in str(error.value)


def test_a_missing_policy_and_an_old_schema(tmp_path):
    with pytest.raises(PolicyError, match="cannot read"):
        load_policy(tmp_path / "none", "model", ACTIONS)
    path = saved(tmp_path) / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))
    with pytest.raises(PolicyError, match="another version"):
        load_policy(tmp_path, "model", ACTIONS)
