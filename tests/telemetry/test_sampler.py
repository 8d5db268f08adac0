import logging
import sys
import threading
import time

import pytest

from telemetry import Sampler, default_sampler, present


class Counting:
    fields = ("load_1m",)

    def __init__(self):
        self.reads = 0

    def read(self):
        self.reads += 1
        return {"load_1m": present(self.reads, "test")}


class Broken:
    fields = ("on_battery", "battery_charge_ratio")

    def read(self):
        raise RuntimeError("the driver is on fire")


class Blocking(Broken):
    """Blocks in every read until it is let go, as a hung driver does."""

    def __init__(self):
        self.free = threading.Event()
        self.reads = 0

    def read(self):
        self.reads += 1
        self.free.wait(20)
        return {"on_battery": present(1.0, "test")}


class Misspelt:
    fields = ("cpu_pressure_ratio",)

    def read(self):
        return {"cpu_presure_ratio": present(1, "test")}


class NoNvml:
    NVMLError = OSError

    @staticmethod
    def nvmlInit():  # noqa: N802
        raise OSError("library not found")


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


@pytest.fixture
def run():
    started = []

    def start(*readers, period_seconds=0.01):
        sampler = Sampler(*readers, period_seconds=period_seconds)
        started.append(sampler)
        sampler.start()
        return sampler

    yield start
    for sampler in started:
        sampler.stop()


def test_nothing_before_the_start_and_a_sample_right_after(run):
    assert Sampler(Counting()).latest() is None
    sampler = run(Counting(), period_seconds=60)
    assert sampler.latest().load_1m.value == 1


def test_it_publishes_new_snapshots_and_leaves_old_ones_alone(run):
    sampler = run(Counting())
    first = sampler.latest()
    wait_until(lambda: sampler.latest().load_1m.value >= 3)
    assert first.load_1m.value == 1
    assert sampler.latest().taken_at > first.taken_at


def test_latest_only_returns_the_reference(run):
    counting = Counting()
    sampler = run(counting, period_seconds=60)
    assert sampler.latest() is sampler.latest()
    assert counting.reads == 1


def test_it_survives_a_reader_that_raises_and_says_so_once(run, caplog):
    with caplog.at_level(logging.WARNING, logger="telemetry"):
        sampler = run(Broken(), Counting())
        wait_until(lambda: sampler.latest().load_1m.value >= 4)
    snapshot = sampler.latest()
    assert snapshot.on_battery.value is None
    assert snapshot.on_battery.reason == "RuntimeError: the driver is on fire"
    assert snapshot.battery_charge_ratio.source == "Broken"
    assert len(caplog.records) == 1


def test_a_field_that_does_not_exist_is_a_failure_of_that_reader_alone(run):
    snapshot = run(Misspelt(), Counting()).latest()
    assert "cpu_presure_ratio" in snapshot.cpu_pressure_ratio.reason
    assert snapshot.load_1m.value == 1


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1])
def test_a_reader_that_blocks_delays_nobody_and_freezes_no_other(run, caplog, at):
    blocking, counting = Blocking(), Counting()
    readers = [counting]
    readers.insert(at, blocking)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="telemetry"):
        sampler = run(*readers)
        assert time.monotonic() - began < 3
        before = sampler.latest()
        assert before.on_battery.reason == "no answer for 1 s"
        assert before.battery_charge_ratio.source == "Blocking"
        wait_until(lambda: sampler.latest().load_1m.value > before.load_1m.value + 5)
        assert blocking.reads == 1
        blocking.free.set()
        wait_until(lambda: sampler.latest().on_battery.value == 1.0)
    assert [r.message for r in caplog.records] == [
        "Blocking blocks; its readings are missing until it is back",
        "Blocking is back",
    ]
    assert sum(t.name == "telemetry" for t in threading.enumerate()) == 1


@pytest.mark.slow
def test_a_reader_that_blocks_later_is_left_alone_too(run):
    blocking, counting = Blocking(), Counting()
    blocking.free.set()
    sampler = run(blocking, counting)
    assert sampler.latest().on_battery.value == 1.0
    blocking.free.clear()
    wait_until(lambda: sampler.latest().on_battery.value is None)
    before = counting.reads
    wait_until(lambda: counting.reads > before + 5)
    began = time.monotonic()
    sampler.stop()
    assert time.monotonic() - began < 2
    blocking.free.set()


@pytest.mark.slow
def test_stop_does_not_wait_for_a_reader(run):
    one, other = Blocking(), Blocking()
    sampler = run(one, other)
    began = time.monotonic()
    sampler.stop()
    assert time.monotonic() - began < 2
    one.free.set()
    other.free.set()


def test_stop_joins_the_thread_and_may_be_repeated(run):
    sampler = run(Counting(), period_seconds=60)
    (thread,) = (t for t in threading.enumerate() if t.name == "telemetry")
    assert thread.daemon
    before = time.monotonic()
    sampler.stop()
    assert time.monotonic() - before < 5
    assert not thread.is_alive()
    sampler.stop()


def test_a_second_start_adds_no_thread_and_a_stopped_one_starts_again(run):
    counting = Counting()
    sampler = run(counting)
    sampler.start()
    assert sum(t.name == "telemetry" for t in threading.enumerate()) == 1
    sampler.stop()
    before = counting.reads
    sampler.start()
    wait_until(lambda: counting.reads >= before + 3)


def test_a_container_without_any_sensor_is_silent(plant, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pynvml", NoNvml)  # whatever this machine has
    root = plant(
        {
            "proc/stat": "cpu  1 0 0 1 0 0 0 0 0 0",
            "proc/loadavg": "0.10 0.10 0.10 1/1 1",
            "proc/meminfo": "MemTotal: 1024 kB\nMemAvailable: 512 kB",
            "proc/self/cgroup": "0::/",
        }
    )
    sampler = default_sampler(root, period_seconds=60)
    sampler.start()
    sampler.stop()
    readings = dict(sampler.latest().readings())
    assert caplog.records == []
    assert {name: r.reason for name, r in readings.items() if r.value is None} == {
        "cpu_utilization_ratio": "first sample",
        "cpu_frequency_hertz": "no cpufreq",
        "cpu_pressure_ratio": "psi not available",
        "memory_pressure_ratio": "psi not available",
        "temperature_celsius": "no temperature sensor",
        "cpu_speed_limit_ratio": "the system does not report a limit",
        "battery_charge_ratio": "no /sys/class/power_supply",
        "on_battery": "no /sys/class/power_supply",
        "cpu_energy_joules": "no rapl",
        "gpu_source": "library not found",
    }
    assert readings["memory_available_bytes"].value == 512 * 1024


def test_this_machine_can_be_read():
    sampler = default_sampler(period_seconds=0.05)
    sampler.start()
    try:
        wait_until(lambda: sampler.latest().cpu_utilization_ratio.value is not None)
    finally:
        sampler.stop()
    snapshot = sampler.latest()
    assert 0 <= snapshot.cpu_utilization_ratio.value <= 1
    assert 0 < snapshot.memory_available_bytes.value <= snapshot.memory_total_bytes.value
    assert snapshot.cpu_effective_count.value > 0
    assert all(r.value is not None or r.reason != "not read" for _, r in snapshot.readings())
