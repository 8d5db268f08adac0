"""A trained policy comes back as it was saved, and only where it belongs."""

import json

import numpy as np
import pytest
import torch

from policies.bundle import PolicyBundle, PolicyError, load_policy
from policies.features import feature_names
from policies.learned import LearnedPolicy
from tests.support.network import FEATURES, random_network
from tests.support.paper import VARIANTS


def saved(folder, **changes):
    made = {
        "fingerprint": "model",
        "variants": VARIANTS,
        "promoted": True,
        "layers": random_network(),
    }
    PolicyBundle(**{"kind": "dqn", "training": {}, "report": {}, **made, **changes}).save(folder)
    return folder


def test_round_trip_and_the_numbers_are_torchs(tmp_path):
    policy = load_policy(saved(tmp_path), "model", VARIANTS)
    points = np.random.default_rng(1).random((20, FEATURES), np.float32)
    (w0, b0), (w1, b1) = (tuple(map(torch.from_numpy, layer)) for layer in random_network())
    wanted = torch.relu(torch.from_numpy(points) @ w0.T + b0) @ w1.T + b1
    np.testing.assert_allclose(policy.values(points), wanted, rtol=1e-4, atol=1e-4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fingerprint": "other"}, "another model"),
        ({"variants": ("base", "half", "third")}, "other variants"),
        ({"promoted": False}, "did not beat"),
        ({"layers": random_network()[:1]}, "damaged"),
        (
            {
                "layers": (
                    *random_network()[:1],
                    (random_network()[1][0] * np.nan, random_network()[1][1]),
                )
            },
            "damaged",
        ),
    ],
)
def test_a_policy_that_does_not_belong_is_refused(tmp_path, changes, says):
    with pytest.raises(PolicyError, match=says):
        load_policy(saved(tmp_path, **changes), "model", VARIANTS)


def test_a_policy_may_know_fewer_readers_than_are_served_but_no_others(tmp_path):
    served = (VARIANTS[0], "base+read-70", "base+read-40", *VARIANTS[1:])
    assert load_policy(saved(tmp_path), "model", served).variants == VARIANTS
    choices = (VARIANTS[0], "base+read-70", *VARIANTS[1:])
    inputs = len(feature_names(choices))
    layers = ((np.zeros((5, inputs), np.float32), np.zeros(5, np.float32)),)
    folder = saved(tmp_path, variants=choices, layers=layers)
    assert load_policy(folder, "model", served).variants == choices
    for others in (VARIANTS, (*VARIANTS, "base+read-40"), choices[:-1]):
        with pytest.raises(PolicyError, match="other variants"):
            load_policy(folder, "model", others)


def test_force_serves_what_was_not_promoted(tmp_path):
    found = load_policy(saved(tmp_path, promoted=False), "model", VARIANTS, force=True)
    assert isinstance(found, LearnedPolicy)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": None}, "lacks 'kind'"),
        ({"model_fingerprint": None}, "lacks 'model_fingerprint'"),
        ({"training": None}, "lacks 'training'"),
        ({"promoted": None}, "lacks 'promoted'"),
        ({"promoted": "false"}, "'promoted' is no bool"),
        ({"kind": "tree"}, "no kind 'tree'"),
        ({"clip": float("nan")}, "'clip' is nan"),
        ({"clip": 5.0}, "'clip' is 5.0"),
        ({"choices": ["base", "base", "tenth", "refuse"]}, "'choices'"),
        ({"choices": ["base", "half", "tenth", "wait"]}, "'choices' are not variants and 'refuse'"),
        ({"choices": ["base", "half", "third", "refuse"]}, "'features'"),
        ({"weights_sha256": "0" * 64}, "not the file"),
    ],
)
def test_what_is_missing_or_wrong_is_named(tmp_path, changes, says):
    path = saved(tmp_path) / "policy.json"
    body = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in body.items() if v is not None}))
    with pytest.raises(PolicyError) as error:
        load_policy(tmp_path, "model", VARIANTS)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "layers",
    [
        tuple((weight.astype(np.float64), bias) for weight, bias in random_network()),
        ((random_network()[0][0], random_network()[0][1] + np.float32("inf")), random_network()[1]),
        ((random_network()[0][0], random_network()[0][1][:, None]), random_network()[1]),
    ],
)
def test_networks_that_are_none(tmp_path, layers):
    with pytest.raises(PolicyError, match="damaged: layer 0"):
        load_policy(saved(tmp_path, layers=layers), "model", VARIANTS)


def test_half_of_another_policy_is_refused(tmp_path):
    """Written over, but for the file that says what it is: a crash between the two."""
    saved(tmp_path / "one")
    saved(tmp_path / "other", layers=random_network(1))
    name = "policy.safetensors"
    (tmp_path / "one" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(PolicyError, match="not the file"):
        load_policy(tmp_path / "one", "model", VARIANTS)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 3}', '{"schema": 2}'])
def test_a_damaged_policy_is_refused_in_one_line(tmp_path, text):
    saved(tmp_path)
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(PolicyError) as error:
        load_policy(tmp_path, "model", VARIANTS)
    assert "\n" not in str(error.value)


def test_a_missing_policy_a_truncated_one_and_an_old_schema(tmp_path):
    with pytest.raises(PolicyError, match="cannot read"):
        load_policy(tmp_path / "none", "model", VARIANTS)
    path = saved(tmp_path) / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))
    with pytest.raises(PolicyError, match="another version"):
        load_policy(tmp_path, "model", VARIANTS)
    numbers = saved(tmp_path) / "policy.safetensors"
    numbers.write_bytes(numbers.read_bytes()[:-40])
    with pytest.raises(PolicyError, match="damaged"):
        load_policy(tmp_path, "model", VARIANTS)
