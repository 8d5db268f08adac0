"""The audit log: whole lines, rotated, and nothing that nobody asked for."""

import json

import pytest

from controller import Analyzer, Newcomer
from controller.audit import AuditError, AuditLog
from policies import RulePolicy, read_observation
from policies.settle import settle
from tests.controller.test_controller import Host


def written(folder) -> list[dict]:
    files = sorted(folder.glob("audit.jsonl*"), reverse=True)
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_lines_hold_what_was_seen_chosen_and_came_of_it(tmp_path):
    host = Host()
    host.busy(4, 12)
    features = Analyzer()("secret words")
    decision = host.controller().decide(Newcomer(features, 40, 100))
    log = AuditLog(tmp_path / "logs" / "audit.jsonl")
    log.answer("one", decision, features, host.snapshot, {"output_tokens": 7})
    log.answer("two", decision, features, host.snapshot, {}, prompt="secret words")
    log.shadow("one", "ffn-50", {"kl": 0.5})
    log.close()
    first, second, shadow = written(tmp_path / "logs")
    assert first["kind"] == "answer"
    assert first["action"] == decision.action.label
    assert first["propensities"] == {first["action"]: 1.0}
    assert first["action"] in first["feasible"]
    assert first["outcome"] == {"output_tokens": 7}
    assert first["predicted"]["loss"] == decision.chosen.loss
    assert first["host"]["memory_total_bytes"] > 0
    assert first["host"]["battery_charge_ratio"] is None
    assert "secret" not in json.dumps(first)
    assert second["prompt"] == "secret words"
    assert (shadow["kind"], shadow["id"], shadow["kl"]) == ("shadow", "one", 0.5)
    again = settle(read_observation(first["observation"]), RulePolicy(), 1.0)
    assert again == (decision.action, decision.reason)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="cannot write the audit log"):
        AuditLog(tmp_path / "file" / "audit.jsonl")


def test_files_are_rotated_between_lines(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=4096, keep=2)
    for number in range(300):
        log.shadow(str(number), "v", {"kl": 0.0})
    log.close()
    assert len(list(tmp_path.iterdir())) == 3
    assert all(file.stat().st_size <= 4096 for file in tmp_path.iterdir())
    numbers = [int(line["id"]) for line in written(tmp_path)]
    assert numbers == list(range(numbers[0], 300))
