"""What the supervisor does with its worker, tick by tick, without a process."""

from pathlib import Path

import pytest

from pruners.architecture import Shape
from server.learning import supervisor as module
from server.learning.conditions import HostState
from server.learning.order import WorkerOrder
from server.learning.plan import STAGES
from server.learning.supervisor import LearningPlan, Supervisor
from telemetry import Snapshot
from telemetry.snapshot import present

SHAPE = Shape(layers=3, hidden=64, heads=4, kv_groups=2, head_dim=16, ffn=96, vocab=97)
GB = 10**9


class Worker:
    """A process that does as a test says."""

    def __init__(self, order, log_path, on_report):
        self.report, self.exit_code, self.killed = on_report, None, False
        self.paused, self.stops = False, 0
        Worker.latest = self

    def pause(self):
        self.stops += not self.paused
        self.paused = True

    def resume(self):
        self.paused = False

    def kill(self):
        self.killed = True


class Bench:
    """A supervisor whose clock, host and worker are a test's."""

    def __init__(self, folder, mode="idle", offer=lambda folder: ()):
        self.requests, self.free, self.now, self.target = 0, 8 * GB, 0.0, folder / "artefact"
        order = WorkerOrder("tiny", "tiny", "0" * 32, str(self.target), 1)
        plan = LearningPlan(order, SHAPE, (), offer)
        host = HostState(lambda: self.requests, self.snapshot, lambda: self.now)
        self.supervisor = Supervisor(plan, mode, host)

    def snapshot(self):
        total, free = present(16 * GB, "x"), present(self.free, "x")
        return Snapshot(0.0, memory_total_bytes=total, memory_available_bytes=free)

    def tick(self, seconds=10.0):
        self.now += seconds
        self.supervisor._tick()
        status = self.supervisor.status()
        return status.state, status.reason


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WorkerProcess", Worker)
    return Bench(tmp_path)


def test_a_request_stops_it_at_once_and_silence_lets_it_go_on(bench):
    assert bench.tick() == ("running", "")
    bench.supervisor.note_request()
    assert Worker.latest.paused, "without waiting for a tick"
    assert bench.tick(0.5) == ("paused", "requests are being answered")
    assert bench.tick(2.0) == ("running", "")
    assert not Worker.latest.paused


def test_it_is_not_started_while_requests_are_answered(bench):
    bench.requests = 1
    assert bench.tick()[0] == "waiting"
    bench.requests = 0
    assert bench.tick()[0] == "running"


def test_it_gives_its_memory_back_and_comes_again(bench):
    bench.tick()
    first, bench.free = Worker.latest, 0.1 * GB
    state, reason = bench.tick()
    assert (state, first.killed) == ("waiting", True)
    assert "short of memory" in reason
    bench.free = 8 * GB
    assert bench.tick(50)[0] == "waiting"
    assert bench.tick(11)[0] == "running"
    assert Worker.latest is not first


def test_a_machine_that_is_too_small_is_told_once(bench, monkeypatch):
    monkeypatch.setattr(module, "needed_bytes", lambda *_: 20 * GB)
    assert bench.tick()[0] == "refused"


def test_progress_and_stages_are_told(bench):
    bench.tick()
    worker = Worker.latest
    worker.report({"kind": "stage", "stage": "reading"})
    worker.report({"kind": "progress", "step": "Fitting maps", "share": 0.25})
    told = bench.supervisor.status().to_json()
    assert (told["stage"], told["step"], told["progress"]) == ("reading", "Fitting maps", 0.25)
    assert told["stages"][0]["state"] == "now"
    worker.report({"kind": "saved", "stage": "reading"})
    assert bench.supervisor.status().done == (), "it is not offered yet"
    bench.tick()
    assert bench.supervisor.status().done == ("reading",)
    assert bench.supervisor.status().stage is None


def test_what_is_saved_is_offered_once(bench, tmp_path):
    taken = []
    bench = Bench(tmp_path, offer=lambda folder: taken.append(folder) or ("mix-80",))
    bench.tick()
    assert taken == []
    bench.target.mkdir()
    (bench.target / "variants.json").write_text("{}")
    bench.tick()
    bench.tick()
    assert taken == [bench.target]
    assert bench.supervisor.status().next_start == ("mix-80",)


def test_an_offer_that_fails_does_not_end_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "WorkerProcess", Worker)
    bench = Bench(tmp_path, offer=lambda folder: 1 / 0)
    bench.target.mkdir()
    bench.tick()
    (bench.target / "variants.json").write_text("{}")
    assert bench.tick()[0] == "running"
    assert "not served before the next start" in caplog.text


@pytest.mark.parametrize("last", [{"kind": "complete"}, None])
def test_all_learned_is_the_end(bench, last):
    bench.tick()
    for stage in STAGES:
        Worker.latest.report({"kind": "saved", "stage": stage.name})
    if last is not None:
        Worker.latest.report(last)
        Worker.latest.exit_code = 0
    assert bench.tick()[0] == "complete"


def test_it_gives_up_after_three_failures(bench):
    for number in range(3):
        assert bench.tick()[0] == "running"
        if number:
            Worker.latest.report({"kind": "failed", "reason": "the disk is full"})
        Worker.latest.exit_code = -9
        state, reason = bench.tick(1)
        assert state == ("failed" if number == 2 else "waiting")
        assert reason == ("the disk is full" if number else "the worker ended with code -9")


def test_two_servers_do_not_learn_at_once(bench):
    bench.tick()
    Worker.latest.report({"kind": "busy", "reason": "another server is learning"})
    Worker.latest.exit_code = 0
    assert bench.tick(1) == ("waiting", "another server is learning")
    assert bench.tick(30)[0] == "waiting"
    assert bench.tick(31)[0] == "running"


def test_the_log_of_the_worker_is_beside_the_artefact(bench, monkeypatch):
    made = []
    monkeypatch.setattr(
        module, "WorkerProcess", lambda *given: made.append(given) or Worker(*given)
    )
    bench.tick()
    assert made[0][1] == Path(bench.target.parent, ".artefact.log")
