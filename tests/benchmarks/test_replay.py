"""The replay's traffic, and how policies are compared."""

import json
import math
import random
from statistics import fmean

import pytest

from benchmarks.replay.comparison import REFUSING, RunResult, compare, resampled_medians
from benchmarks.replay.figures import figures
from benchmarks.replay.long_prompts import prompts_of_lengths
from benchmarks.replay.open_loop import Objective, ReplayRun, ScheduledRequest, TimedAnswer
from benchmarks.replay.simulated import simulate
from benchmarks.replay.trace import TraceSource
from benchmarks.support.disclosed import disclosed_action
from policies.simulation.traffic import at_load, synthetic
from tests.support.paper import READERS, profile
from tests.support.tiny import tiny_tokenizer

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "dog")


@pytest.fixture
def texts(tmp_path):
    """A file of prompts, and its texts."""
    chance = random.Random(1)
    found = [" ".join(chance.choices(WORDS, k=chance.randint(5, 30))) for _ in range(60)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in found))
    return path, found


def test_long_prompts_are_whole_texts_of_the_wanted_length(texts):
    path, known = texts
    tokenizer, lengths = tiny_tokenizer(), [40, 100, 300, 300]
    made = prompts_of_lengths(str(path), lengths, tokenizer)
    for (text, tokens), wanted in zip(made, lengths, strict=True):
        assert tokens == len(tokenizer.encode(text, add_special_tokens=False))
        assert tokens == pytest.approx(wanted, abs=3)
        cut, *whole = text.split("\n\n")
        assert any(one.endswith(cut) for one in known)
        assert set(whole) <= set(known)
    assert made[2][0][:20] != made[3][0][:20], "no two begin alike"
    assert made == prompts_of_lengths(str(path), lengths, tokenizer)


def test_own_lengths_are_the_trace_s_with_prompts_as_long(texts, tmp_path):
    path, _ = texts
    rows = [{"timestamp": 1e3 * i, "input_length": 900 + i, "output_length": 90} for i in range(40)]
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = TraceSource(trace, str(path), "own")
    requests = source.requests(tiny_tokenizer())
    for request, row in zip(requests, rows, strict=True):
        ratio = row["input_length"] / row["output_length"]
        assert request.prompt_tokens / request.output == pytest.approx(ratio, rel=0.05)
    chats = TraceSource(trace, str(path), "prompts").requests(tiny_tokenizer())
    assert max(request.prompt_tokens for request in chats) <= 60, "one of the file's own texts"


def test_intervals_are_those_of_independent_requests_where_they_are():
    chance = random.Random(3)
    runs = [[float(chance.random() < 0.7) for _ in range(2000)]]
    low, high = sorted(resampled_medians(runs, 0))[50:-50:1899]
    wanted = 1.96 * math.sqrt(0.7 * 0.3 / 2000)
    assert (high - low) / 2 == pytest.approx(wanted, rel=0.2)


def test_requests_that_fail_together_make_intervals_wider():
    together = [float(i // 20 % 2) for i in range(400)]
    apart = [float(i % 2) for i in range(400)]
    assert resampled_medians([together], 0).std() > 5 * resampled_medians([apart], 0).std()


def test_policies_are_compared_with_the_base_that_refuses():
    runs = {
        (1.5, REFUSING): [RunResult([1, 0] * 100, [1, 0] * 100)] * 3,
        (1.5, "rule"): [RunResult([1, 1] * 100, [0.8, 0.7] * 100)] * 3,
        (2.0, "rule"): [RunResult([1] * 40, [q] * 40) for q in (0.4, 0.5, 0.9)],
    }
    refusing, rule, alone = sorted(compare(runs), key=lambda r: (r["load"], r["policy"]))
    assert refusing["over_refusing"] is None
    assert rule["over_refusing"][0] == pytest.approx(0.75 / 0.5)
    assert rule["over_refusing"][1] <= 1.5 <= rule["over_refusing"][2]
    assert alone["over_refusing"] is None
    assert alone["quality"] == pytest.approx((0.5, 0.4, 0.9)), "of three runs, the middle one"


def test_simulated_policies_are_judged_by_all_three_objectives():
    table = profile(readers=READERS)
    arrivals = at_load(synthetic(200, 1), 1.5, table.rates, 16)
    found, outcomes = simulate(table, arrivals, "refusing:base", Objective(2.0, 0.1, 20.0), 0)
    refused = [outcome.action is None for outcome in outcomes]
    assert any(refused)
    assert fmean(found.met) == pytest.approx(1 - fmean(refused), abs=0.15)
    assert found.quality == found.met, "the base loses nothing"
    strict, _ = simulate(table, arrivals, "refusing:base", Objective(2.0, 0.1, 0.5), 0)
    assert sum(strict.met) < sum(found.met)


def test_an_answer_is_counted_by_writer_reader_and_budget():
    made = [
        {"variant": "base", "kv_budget": None, "read": "full"},
        {"variant": "base", "kv_budget": None, "read": "read-65"},
        {"variant": "mix-80", "kv_budget": 512, "read": "full"},
        {"variant": "base"},
    ]
    answers = [
        TimedAnswer(ScheduledRequest(float(i), "", 4, 2), 200, disclosed_action(one), 0.1, 0.2, 2)
        for i, one in enumerate(made)
    ]
    assert [a.action.label for a in answers] == ["base", "base+read-65", "mix-80+kv-512", "base"]
    found = figures(ReplayRun(answers, 1.0), Objective(1.0, 1.0, 1.0), [0.0, 0.1, 0.7, 0.0])
    assert (found["base"], found["full"], found["budget"]) == (0.75, 0.75, 0.25)
