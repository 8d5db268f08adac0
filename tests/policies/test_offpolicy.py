"""Off-policy estimates against the truth, which the profile's table holds in full."""

import json
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from policies import ExploringPolicy, Objectives, RulePolicy, StaticPolicy, propensities
from policies.offpolicy import LogError, LoggedDecision, estimate_value, read_log
from policies.simulation.environment import ALONE
from policies.simulation.scenario import Scenario
from policies.simulation.server import SimulatedServer
from policies.simulation.traffic import at_load, synthetic
from pruners.data.readers import ReadError
from server.cli.main import main
from tests.support.paper import RATES, VARIANTS, profile

COUNT = 1500
POLICY = ExploringPolicy(RulePolicy(), 0.5)


@pytest.fixture(scope="module")
def logged():
    """Decisions with chance in them, each request alone: what came of it is the table's figure."""
    table = profile(prompts=300)
    arrivals = at_load(synthetic(COUNT, 1), ALONE, RATES, 8)
    rows = np.random.default_rng(2).integers(0, 300, COUNT).tolist()
    server = SimulatedServer(table, arrivals, rows, Scenario(Objectives(ttft=1.0), seed=4))
    entries, truth = [], {name: [] for name in VARIANTS}
    while server.arrive():
        seen = server.observation()
        action, _ = POLICY.choose(seen)
        number = VARIANTS.index(action.variant)
        probabilities = propensities(POLICY, seen, POLICY.choose)
        row = rows[len(entries)]
        value = float(np.exp(-table.prompts.loss[row, number]))
        entries.append(LoggedDecision(seen, action.label, probabilities[action.label], value))
        for place, name in enumerate(VARIANTS):
            truth[name].append(float(np.exp(-table.prompts.loss[row, place])))
        server.take(number)
    return entries, {name: float(np.mean(values)) for name, values in truth.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_estimates_cover_the_truth(logged, variant):
    entries, truth = logged
    found = estimate_value(entries, StaticPolicy(variant))
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
    found = estimate_value(exact, StaticPolicy("tenth"))
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
    found = estimate_value(wrong, StaticPolicy("tenth"))
    assert found.doubly_robust == pytest.approx(truth["tenth"], abs=0.04)


def test_clipping_bounds_the_weights(logged):
    entries, _ = logged
    found = estimate_value(entries, StaticPolicy("tenth"), clip=2.0)
    assert found.largest == pytest.approx(6.0, rel=0.01)
    assert found.effective == pytest.approx(COUNT / 6, rel=0.15)


def test_a_policy_that_the_log_never_followed_is_an_error(logged):
    entries = [one for one in logged[0] if one.label == "base"]
    with pytest.raises(LogError, match="log with chance"):
        estimate_value(entries, StaticPolicy("tenth"))


def entry(seen, **changes):
    return {
        "kind": "answer",
        "answer": "one",
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
        {"kind": "shadow", "answer": "one", "kl": 0.1},
        entry(seen, answer="two"),
        entry(seen, answer="three", outcome=late),
        entry(seen, answer="four", reason="pinned"),
        entry(
            seen, answer="five", reason="late", propensities={"refuse": 1.0},
            outcome={"finish_reason": "refused"},
        ),
    ]  # fmt: skip
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = read_log([path])
    found = log.decisions
    assert log.torn == 0
    assert [one.label for one in found] == ["half", "half", "half", "refuse"]
    assert [one.value for one in found] == pytest.approx([np.exp(-0.1), np.exp(-0.3), -0.5, -0.5])
    assert found[0].propensity == 0.25


def test_a_loss_of_zero_is_no_loss_and_an_unknown_one_is_worth_nothing(logged, tmp_path):
    """As the doubly robust estimate's model has it."""
    seen = logged[0][0].observation
    lines = [
        entry(seen, answer="one", predicted={"loss": 0.0}),
        entry(seen, answer="two", predicted={"loss": None}),
        entry(seen, answer="three", predicted={"loss": 0.3}),
        {"kind": "shadow", "answer": "three", "kl": 0.0},
    ]
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [one.value for one in read_log([path]).decisions] == [1.0, 0.0, 1.0]


def test_equal_request_ids_join_nothing(logged, tmp_path):
    """A client may send the same `X-Request-Id` twice; the shadow measured the first answer."""
    seen = logged[0][0].observation
    lines = [
        entry(seen, id="same", answer="one"),
        entry(seen, id="same", answer="two"),
        {"kind": "shadow", "answer": "one", "kl": 0.1},
    ]
    path = tmp_path / "audit.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = [one.value for one in read_log([path]).decisions]
    assert values == pytest.approx([np.exp(-0.1), np.exp(-0.3)])


def test_torn_lines_are_counted_and_left_out(logged, tmp_path):
    whole = json.dumps(entry(logged[0][0].observation)).encode() + b"\n"
    path = tmp_path / "audit.jsonl"
    path.write_bytes(whole + whole[:90] + b"\n" + whole + b"\xff\x00\n" + whole[:40])
    found = read_log([path])
    assert (len(found.decisions), found.torn) == (2, 3)
    path.write_bytes(whole[:90])
    with pytest.raises(LogError, match="none of its lines can be read"):
        read_log([path])


def test_estimate_says_how_many_lines_were_torn(logged, tmp_path, monkeypatch, capsys):
    line = json.dumps(entry(logged[0][0].observation, action="base", propensities={"base": 0.5}))
    path = tmp_path / "audit.jsonl"
    path.write_text(f"{line}\n{line[:50]}\n{line}\n{line[:70]}")
    monkeypatch.setattr(
        sys, "argv", ["trimtab", "estimate", "--log", str(path), "--policy", "rule"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert not ended.value.code
    assert "rule: 2 decisions" in said.out
    assert "2 torn lines were left out" in said.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"propensities": {"half": 0.0}}, "line 2 is not of an audit log: a propensity of 0"),
        ({"propensities": {}}, "line 2 is not of this version's audit log: no 'half'"),
        ({"observation": 3}, "line 2 is not of an audit log"),
    ],
)
def test_a_damaged_decision_is_named(logged, tmp_path, changes, message):
    seen = logged[0][0].observation
    path = tmp_path / "audit.jsonl"
    path.write_text(f"{json.dumps(entry(seen))}\n{json.dumps(entry(seen, **changes))}\n")
    with pytest.raises(LogError, match=message):
        read_log([path])


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"kind": "answer"}', '{"kind": "answer", "id": 1, "reason": "x"}']
)
def test_another_file_is_one_line(tmp_path, text):
    path = tmp_path / "audit.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(LogError) as error:
        read_log([path])
    assert "\n" not in str(error.value)
    with pytest.raises(ReadError, match="cannot read"):
        read_log([tmp_path / "none"])
