"""When the worker may run: by requests, power and memory, in each mode."""

import pytest

from server.learning.conditions import BUSY, ON_BATTERY, Conditions, HostState
from telemetry import Snapshot
from telemetry.snapshot import missing, present

GB = 10**9


class Host:
    """A machine of 16 GB whose state a test sets."""

    def __init__(self, mode="idle", free=8 * GB):
        self.requests, self.free, self.battery, self.now = 0, free, 0.0, 100.0
        state = HostState(lambda: self.requests, self.snapshot, lambda: self.now)
        self.conditions = Conditions(mode, state)
        self.now += 10

    def snapshot(self):
        battery = (
            missing("none", "no battery") if self.battery is None else present(self.battery, "x")
        )
        free = missing("none", "not read") if self.free is None else present(self.free, "x")
        return Snapshot(
            0.0,
            memory_total_bytes=present(16 * GB, "x"),
            memory_available_bytes=free,
            on_battery=battery,
        )


@pytest.mark.parametrize("running", [False, True])
def test_it_runs_on_an_idle_host(running):
    assert Host().conditions.verdict(GB, running).reason is None


def test_it_waits_two_seconds_after_the_last_request():
    host = Host()
    assert host.conditions.note_request(), "it has to stop"
    host.requests = 1
    assert host.conditions.verdict(GB, True).reason == BUSY
    host.requests = 0
    host.now += 1.9
    assert host.conditions.verdict(GB, True).reason == BUSY
    host.now += 0.2
    assert host.conditions.verdict(GB, True).reason is None


def test_with_now_requests_do_not_stop_it():
    host = Host("now")
    host.requests = 3
    assert not host.conditions.note_request()
    assert host.conditions.verdict(GB, True).reason is None


@pytest.mark.parametrize("mode", ["idle", "now"])
def test_it_does_not_run_on_battery(mode):
    host = Host(mode)
    host.battery = 1.0
    assert host.conditions.verdict(GB, True) == (ON_BATTERY, False)


@pytest.mark.parametrize(
    ("free", "needed", "running", "kept_out", "killed"),
    [
        (2.0, 1.0, False, False, False),
        (1.7, 1.0, False, True, False),
        (0.9, 1.0, True, False, False),
        (0.7, 1.0, True, True, True),
    ],
)
def test_it_leaves_a_twentieth_of_the_memory_free(free, needed, running, kept_out, killed):
    verdict = Host(free=free * GB).conditions.verdict(int(needed * GB), running)
    assert (verdict.reason is not None) == kept_out
    assert verdict.kill == killed


def test_what_cannot_be_read_does_not_keep_it_out():
    host = Host(free=None)
    host.battery = None
    assert host.conditions.verdict(GB, False).reason is None


def test_a_model_that_can_never_fit_is_told():
    assert Host().conditions.never_fits(15 * GB) is None
    assert "16.0 GB of memory, this machine has 16.0 GB" in Host().conditions.never_fits(16 * GB)
