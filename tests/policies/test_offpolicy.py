"""Off-policy estimates against the truth, which the profile's table holds in full."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from policies import ExploringPolicy, Objectives, RulePolicy, StaticPolicy, propensities
from policies.offpolicy import LogError, Logged, estimate, read_log
from policies.simulation.environment import ALONE
from policies.simulation.traffic import at_load, synthetic
from policies.simulation.world import World
from tests.policies.paper import RATES, VARIANTS, profile

COUNT = 1500
POLICY = ExploringPolicy(RulePolicy(), 0.5)


@pytest.fixture(scope="module")
def logged():
    """Decisions with chance in them, each request alone: what came of it is the table's figure."""
    table = profile(prompts=300)
    arrivals = at_load(synthetic(COUNT, 1), ALONE, RATES, 8)
    rows = np.random.default_rng(2).integers(0, 300, COUNT).tolist()
    world = World(table, arrivals, rows, Objectives(ttft=1.0), seed=4)
    entries, truth = [], {name: [] for name in VARIANTS}
    while world.arrive():
        seen = world.observation()
        action, _ = POLICY.choose(seen)
        number = VARIANTS.index(action.variant)
        odds = propensities(POLICY, seen, POLICY.choose)
        row = rows[len(entries)]
        value = float(np.exp(-table.prompts.loss[row, number]))
        entries.append(Logged(seen, action.label, odds[action.label], value))
        for place, name in enumerate(VARIANTS):
            truth[name].append(float(np.exp(-table.prompts.loss[row, place])))
        world.take(number)
    return entries, {name: float(np.mean(values)) for name, values in truth.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_estimates_cover_the_truth(logged, variant):
    entries, truth = logged
    found = estimate(entries, StaticPolicy(variant))
    for value, (low, high) in (
        (found.snips, found.snips_95),
        (found.doubly_robust, found.doubly_robust_95),
    ):
        assert low - 0.01 <= truth[variant] <= high + 0.01
        assert value == pytest.approx(truth[variant], abs=0.03)
    assert found.decisions == COUNT
    share = {"base": 0.5 + 0.5 / 3}.get(variant, 0.5 / 3)
    assert found.effective == pytest.approx(share * COUNT, rel=0.15)
    assert found.largest == pytest.approx(1 / share, rel=0.01)


def test_a_perfect_model_needs_no_decision_that_agrees(logged):
    """The doubly robust estimate is then exact, where importance weights leave it wide."""
    entries, _ = logged
    values = {c.action.label: np.exp(-c.loss) for c in entries[0].observation.candidates}
    exact = [replace(one, value=float(values[one.label])) for one in entries[:300]]
    found = estimate(exact, StaticPolicy("tenth"))
    assert found.doubly_robust == pytest.approx(values["tenth"])
    low, high = found.doubly_robust_95
    assert high - low < 1e-9


def test_a_wrong_model_is_corrected_by_what_was_seen(logged):
    entries, truth = logged
    wrong = [
        replace(
            one,
            observation=replace(
                one.observation,
                candidates=tuple(replace(c, loss=3.0) for c in one.observation.candidates),
            ),
        )
        for one in entries
    ]
    found = estimate(wrong, StaticPolicy("tenth"))
    assert found.doubly_robust == pytest.approx(truth["tenth"], abs=0.04)


def test_clipping_bounds_the_weights(logged):
    entries, _ = logged
    found = estimate(entries, StaticPolicy("tenth"), clip=2.0)
    assert found.largest == pytest.approx(6.0, rel=0.01)
    assert found.effective == pytest.approx(COUNT / 6, rel=0.15)


def test_a_policy_that_the_log_never_followed_is_an_error(logged):
    entries = [one for one in logged[0] if one.label == "base"]
    with pytest.raises(LogError, match="log with chance"):
        estimate(entries, StaticPolicy("tenth"))


def entry(seen, **changes):
    return {
        "kind": "answer",
        "id": "one",
        "reason": "explored",
        "action": "half",
        "propensities": {"half": 0.25},
        "predicted": {"loss": 0.3},
        "outcome": {"finish_reason": "stop", "ttft": 0.4, "tpot": 0.02, "seconds": 1.0},
        "observation": asdict(seen),
        **changes,
    }


def test_a_log_is_read_with_what_the_shadow_measured(logged, tmp_path):
    seen = logged[0][0].observation
    late = {"finish_reason": "stop", "ttft": 1.4, "tpot": 0.02, "seconds": 2.0}
    lines = [
        entry(seen),
        {"kind": "shadow", "id": "one", "kl": 0.1},
        entry(seen, id="two"),
        entry(seen, id="three", outcome=late),
        entry(seen, id="four", reason="pinned"),
        entry(
            seen, id="five", reason="late", propensities={"refuse": 1.0},
            outcome={"finish_reason": "refused"},
        ),
    ]  # fmt: skip
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_log([path])
    assert [one.label for one in found] == ["half", "half", "half", "refuse"]
    assert [one.value for one in found] == pytest.approx([np.exp(-0.1), np.exp(-0.3), -0.5, -0.5])
    assert found[0].propensity == 0.25


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"kind": "answer"}', '{"kind": "answer", "id": 1, "reason": "x"}']
)
def test_another_file_is_one_line(tmp_path, text):
    path = tmp_path / "audit.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(LogError) as error:
        read_log([path])
    assert "\n" not in str(error.value)
    with pytest.raises(LogError, match="cannot read"):
        read_log([tmp_path / "none"])
