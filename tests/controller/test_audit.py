"""The audit log: whole lines, rotated, and nothing that nobody asked for."""

import errno
import json
import os
import stat
import threading
from itertools import count

import pytest

from controller import Analyzer, IncomingRequest
from controller.audit import AnswerRecord, AuditError, AuditLog
from policies import RulePolicy, read_observation
from policies.hysteresis import choose_with_hysteresis
from tests.support.controlled_host import ControlledHost


def written(folder) -> list[dict]:
    files = sorted(folder.glob("audit.jsonl*"), reverse=True)
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_lines_hold_what_was_seen_chosen_and_came_of_it(tmp_path):
    host = ControlledHost()
    host.set_requests(4, 12)
    features = Analyzer()("secret words")
    decision = host.controller().decide(IncomingRequest(features, 40, 100))
    log = AuditLog(tmp_path / "logs" / "audit.jsonl")
    host.set_requests(0, 0)
    arrival = host.controller().decide(IncomingRequest(features, 40, 100))
    known = (arrival, decision, features, host.snapshot)
    log.log_answer(AnswerRecord("a1", "same", *known, {"output_tokens": 7}))
    log.log_answer(AnswerRecord("a2", "same", *known, {}, prompt="secret words"))
    log.log_shadow("a1", "ffn-50", {"kl": 0.5})
    log.close()
    first, second, shadow = written(tmp_path / "logs")
    assert first["kind"] == "answer"
    assert first["action"] == decision.action.label
    assert first["arrival"] == {"action": "base", "reason": "base_fits", "wait": 0.0}
    assert first["propensities"] == {first["action"]: 1.0}
    assert first["action"] in first["feasible"]
    assert first["outcome"] == {"output_tokens": 7}
    assert first["predicted"]["loss"] == decision.chosen.loss
    assert first["host"]["memory_total_bytes"] > 0
    assert first["host"]["battery_charge_ratio"] is None
    assert "secret" not in json.dumps(first)
    assert second["prompt"] == "secret words"
    assert (shadow["kind"], shadow["answer"], shadow["kl"]) == ("shadow", "a1", 0.5)
    assert (first["answer"], second["answer"]) == ("a1", "a2")
    assert first["id"] == second["id"] == "same"
    again = choose_with_hysteresis(read_observation(first["observation"]), RulePolicy(), 1.0)
    assert again == (decision.action, decision.reason)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="cannot write the audit log"):
        AuditLog(tmp_path / "file" / "audit.jsonl")


@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_a_place_that_is_no_plain_file_is_one_line(tmp_path, kind):
    path = tmp_path / "audit.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "other").write_text("mine")
        path.symlink_to("other")
    else:
        os.mkfifo(path)
    with pytest.raises(AuditError, match="it is no plain file"):
        AuditLog(path)
    assert kind != "link" or (tmp_path / "other").read_text() == "mine"


def test_its_owner_alone_may_read_it(tmp_path):
    for name in ("audit.jsonl", "audit.jsonl.1"):
        (tmp_path / name).write_text("{}\n")
        (tmp_path / name).chmod(0o644)
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=4096, keep=3)
    for number in range(100):
        log.log_shadow(str(number), "v", {"kl": 0.0})
    log.close()
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}


def test_nothing_is_glued_to_a_line_that_a_crash_has_torn(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_text('{"kind": "ans')
    log = AuditLog(path)
    log.log_shadow("a1", "v", {"kl": 0.0})
    log.close()
    torn, line = path.read_text().splitlines()
    assert torn == '{"kind": "ans'
    assert json.loads(line)["answer"] == "a1"


def test_a_full_disk_costs_lines_and_one_warning_without_their_content(
    tmp_path, monkeypatch, caplog
):
    """Every other write is cut short in its middle, as a disk does that has just become full."""
    path, lost, write, calls = tmp_path / "audit.jsonl", [], os.write, count()

    def full(file: int, data: bytes) -> int:
        if b"secret" not in data:
            return write(file, data)
        if next(calls) % 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:20])

    log = AuditLog(path, on_lost=lambda: lost.append(1))
    with monkeypatch.context() as patched, caplog.at_level("WARNING"):
        patched.setattr("controller.rotating_file.os.write", full)
        for number in range(50):
            log.log_shadow(f"secret {number}", "v", {"kl": 0.0})
            log.log_shadow(str(number), "v", {"kl": 0.0})
        log.close()
    assert len(lost) == 50
    (warning,) = caplog.records
    assert "No space left" in warning.getMessage()
    assert "secret" not in caplog.text
    assert [line["answer"] for line in written(tmp_path)] == [str(n) for n in range(50)]


def test_a_disk_that_hangs_delays_nobody_and_holds_a_bounded_number_of_lines(tmp_path, monkeypatch):
    lost, hung = [], threading.Event()
    monkeypatch.setattr("controller.audit._MAX_WAITING", 10)
    monkeypatch.setattr("controller.audit._CLOSE_SECONDS", 0.1)
    log = AuditLog(tmp_path / "audit.jsonl", on_lost=lambda: lost.append(1))
    monkeypatch.setattr(log._file, "append", lambda line: hung.wait(60))
    for _ in range(100):
        log.log_shadow("a1", "v", {"kl": 0.0})
    assert 89 <= len(lost) <= 90  # one may be on its way to the disk
    log.close()
    hung.set()


def test_a_file_that_cannot_be_opened_anew_is_tried_again(tmp_path, monkeypatch):
    """Renamed once, not once for each line: older files must not be pushed out."""
    path, lost = tmp_path / "audit.jsonl", []
    log = AuditLog(path, max_bytes=4096, keep=5, on_lost=lambda: lost.append(1))
    file, open_file, fails = log._file, log._file._open, iter(range(20))

    def refuse() -> int:
        if next(fails, None) is not None:
            raise OSError(errno.ENOSPC, "full")
        return open_file()

    monkeypatch.setattr(file, "_open", refuse)
    for number in range(100):
        log.log_shadow(str(number), "v", {"kl": 0.0})
    log.close()
    assert len(lost) == 20
    assert len(written(tmp_path)) == 80


def test_files_are_rotated_between_lines(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=4096, keep=2)
    for number in range(300):
        log.log_shadow(str(number), "v", {"kl": 0.0})
    log.close()
    assert len(list(tmp_path.iterdir())) == 3
    assert all(file.stat().st_size <= 4096 for file in tmp_path.iterdir())
    numbers = [int(line["answer"]) for line in written(tmp_path)]
    assert numbers == list(range(numbers[0], 300))
