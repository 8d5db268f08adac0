"""The verdict: promoted only for evidence; figures against sums done by hand."""

import json

import numpy as np
import pytest

from policies import Objectives, RulePolicy, StaticPolicy
from policies.features import choice_names
from policies.simulation.engine import EngineLimits
from policies.simulation.rewards import Reward
from policies.simulation.traffic import Arrival, synthetic
from policies.training.evaluation import (
    PolicyEvaluation,
    confusion,
    decide_promotion,
    evaluate_policies,
    reward_interval,
    summarize,
)
from policies.training.fluid_bound import QualityBounds, fluid_bound
from policies.training.report import write_report
from tests.support.paper import CHOICES, RATES, READERS, VARIANTS, profile


@pytest.fixture(scope="module")
def trial():
    return PolicyEvaluation(
        profile(), synthetic(600, 3), np.arange(60, 100), Reward(), Objectives(ttft=1.0, firm=True),
        EngineLimits(), loads=(0.5, 1.5),
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(trial):
    return evaluate_policies(trial, {"dqn": StaticPolicy("tenth"), "twin": RulePolicy()})


@pytest.mark.slow
def test_all_policies_go_through_the_same(trial, runs):
    assert set(runs) == {
        *(f"static:{name}" for name in VARIANTS),
        "refusing:base", "random", "rule", "oracle", "dqn", "twin",
    }  # fmt: skip
    assert {len(own) for own in runs.values()} == {2 * 2 * 2}
    assert [r.reward for r in runs["twin"]] == [r.reward for r in runs["rule"]]
    assert [r.reward for r in runs["dqn"]] == [r.reward for r in runs["static:tenth"]]


@pytest.mark.slow
def test_the_worse_one_is_not_promoted_and_an_equal_one_neither(runs):
    worse, equal = decide_promotion(runs, "dqn"), decide_promotion(runs, "twin")
    assert not worse["promoted"]
    assert worse["over_rule"][1] < 0
    assert not equal["promoted"]
    assert equal["over_rule"] == (0.0, 0.0)
    assert worse["regret"][0] > 0
    better = decide_promotion({**runs, "dqn": runs["oracle"], "rule": runs["static:base"]}, "dqn")
    assert better["over_rule"][0] > 0


@pytest.mark.slow
def test_the_rule_is_near_the_oracle_and_above_dense(trial, runs):
    found = summarize(trial, runs)["policies"]
    for load in ("0.5", "1.5"):
        rule, oracle = found["rule"][load], found["oracle"][load]
        assert rule["quality"] > 0.95 * oracle["quality"]
        assert abs(rule["attained"] - oracle["attained"]) < 0.02
    assert found["rule"]["1.5"]["quality"] > found["refusing:base"]["1.5"]["quality"]
    assert found["rule"]["0.5"]["quality"] > 0.99


@pytest.mark.slow
def test_figures_are_sums_over_all_requests(trial, runs):
    found = summarize(trial, runs)["policies"]["refusing:base"]["1.5"]
    outcomes = [one for run in runs["refusing:base"] if run.load == 1.5 for one in run.outcomes]
    met = sum(one.met for one in outcomes) / len(outcomes)
    assert found["attained"] == pytest.approx(met)
    assert found["quality_lost_half"] == pytest.approx(met - 0.5 * (1 - met))


@pytest.mark.slow
def test_the_interval_is_of_pairs(runs):
    low, high = reward_interval(runs["rule"], runs["static:tenth"])
    assert low < np.mean(
        [a.reward - b.reward for a, b in zip(runs["rule"], runs["static:tenth"], strict=True)]
    ) < high  # fmt: skip
    assert reward_interval(runs["rule"], runs["rule"]) == (0.0, 0.0)


@pytest.mark.slow
def test_the_regret_is_over_trainings_and_runs(runs):
    """Of one training as good as the rule and one that is not, the interval reaches to both."""
    found = decide_promotion(runs, "twin", ["dqn"])
    alone = [decide_promotion(runs, name)["regret"] for name in ("twin", "dqn")]
    assert found["regret"][0] <= alone[0][1]
    assert found["regret"][1] >= alone[1][0] > alone[0][1]
    means = [np.mean([run.reward for run in runs[name]]) for name in ("twin", "dqn")]
    assert found["trainings"] == pytest.approx(means)
    assert found["over_rule"] == decide_promotion(runs, "twin")["over_rule"], (
        "what is kept is the first"
    )


@pytest.mark.slow
def test_the_fluid_bound_by_hand():
    assert fluid_bound([1.0, 0.5], [1.0, 0.6], 0.5, 0.0) == (1.0, {0: 1.0})
    value, mix = fluid_bound([1.0, 0.5], [1.0, 0.8], 1.5, 0.0)
    assert mix == pytest.approx({1: 2 / 3, 0: 1 / 3})
    assert value == pytest.approx(1 / 3 + 0.8 * 2 / 3)
    value, mix = fluid_bound([1.0, 0.5], [1.0, 0.3], 2.0, 0.0)
    assert mix == pytest.approx({None: 0.5, 0: 0.5}), "a yield below 1 never pays"
    assert fluid_bound([1.0, 0.5], [1.0, 0.3], 2.0, -1.0)[1] == {1: 1.0}


@pytest.mark.slow
def test_the_fluid_bound_when_so_many_are_to_be_answered():
    assert fluid_bound([1.0, 0.5], [1.0, 0.3], 2.0, 0.0, served=0.4)[1] == {None: 0.5, 0: 0.5}
    value, mix = fluid_bound([1.0, 0.5], [1.0, 0.3], 2.0, 0.0, served=0.8)
    assert mix == pytest.approx({None: 0.2, 0: 0.2, 1: 0.6}), "1/2 of work for .8 of the requests"
    assert value == pytest.approx(0.2 + 0.6 * 0.3)
    # More than the cheapest can serve is not asked for.
    value, mix = fluid_bound([1.0, 0.5], [1.0, 0.3], 4.0, -0.5, served=1.0)
    assert mix == pytest.approx({None: 0.5, 1: 0.5})
    assert value == pytest.approx(0.5 * 0.3 - 0.5 * 0.5)


@pytest.mark.slow
def test_the_report_is_from_the_raw_runs(trial, runs, tmp_path):
    found = {**summarize(trial, runs), "verdict": decide_promotion(runs, "dqn"), "about": "paper"}
    write_report(tmp_path, trial.profile, found, runs, "dqn", [1.0, 2.0])
    body = json.loads((tmp_path / "report.json").read_text())
    assert body["verdict"]["promoted"] is False
    counts = confusion(runs["dqn"], choice_names(VARIANTS))
    assert body["confusion"] == counts
    assert sum(map(sum, counts)) == sum(len(run.outcomes) for run in runs["dqn"])
    text = (tmp_path / "report.md").read_text()
    assert "not promoted" in text
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "report.md", "report.png"]


def test_the_bounds_know_what_readers_save_on_the_prompts_of_the_traffic():
    """One prompt of 32 tokens is read in full, one of 1,600 takes the quick reader .71."""
    made = profile(noise=0.0, readers=READERS)
    traffic = [Arrival(0.0, 32, 40), Arrival(1.0, 1600, 40)]
    bounds = QualityBounds(made, np.arange(100), traffic, 8)
    step = (RATES.stream[0] + 8 * RATES.row[0]) / 8 + (816 + 20) * RATES.cached[0]
    whole, read = (816 * share * RATES.prompt[0] for share in (1.0, (32 + 0.71 * 1600) / 1632))
    assert bounds.costs[1] == pytest.approx((read + 40 * step) / (whole + 40 * step))
    kept = (np.exp(-0.02) + np.exp(-0.05)) / 2
    assert bounds.values[1] == pytest.approx(kept)
    assert bounds.values[5] == pytest.approx(kept * np.exp(-0.3))
    assert bounds.at(1.0)["quality"] == pytest.approx(1.0)
    plain = QualityBounds(profile(noise=0.0), np.arange(100), traffic, 8)
    assert plain.costs == [bounds.costs[CHOICES.index(name)] for name in VARIANTS]
    assert bounds.at(1.3)["quality"] > plain.at(1.3)["quality"]


@pytest.mark.slow
def test_the_report_shows_what_readers_did(tmp_path):
    trial = PolicyEvaluation(
        profile(readers=READERS), synthetic(600, 3), np.arange(60, 100), Reward(),
        Objectives(ttft=1.0, firm=True), EngineLimits(), loads=(0.5, 2.0),
    )  # fmt: skip
    found = evaluate_policies(trial, {"dqn": StaticPolicy("base+quick")})
    assert {f"static:{name}" for name in CHOICES} < set(found)
    summary = summarize(trial, found)
    summary["verdict"] = decide_promotion(found, "dqn")
    summary["about"] = "words"
    rule = summary["policies"]["rule"]
    assert rule["0.5"]["in_full"] > 0.9 > rule["2"]["in_full"]
    assert summary["policies"]["static:base+quick"]["0.5"]["in_full"] == 0.0
    write_report(tmp_path, trial.profile, summary, found, "dqn", [0.0])
    text = (tmp_path / "report.md").read_text()
    assert "| read in full |" in text
    assert "static:base+quick" in text
    assert len(json.loads((tmp_path / "report.json").read_text())["confusion"]) == 7
