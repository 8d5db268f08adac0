import dataclasses
import time

import pytest

from telemetry import GpuReadings, Reading, Snapshot, missing, present


def test_a_reading_has_a_value_or_a_reason_and_never_both_or_neither():
    assert present(0.0, "nvml") == Reading(0.0, "nvml")
    assert missing("nvml", "gone") == Reading(None, "nvml", "gone")
    with pytest.raises(ValueError, match="reason"):
        Reading(None, "nvml")
    with pytest.raises(ValueError, match="reason"):
        Reading(1.0, "nvml", "gone")


def test_a_snapshot_cannot_be_changed_and_knows_its_age():
    snapshot = Snapshot(taken_at=time.monotonic() - 3)
    assert 3 <= snapshot.age() < 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.taken_at = 0


def test_readings_iterate_over_every_scalar_and_leave_the_gpus_to_themselves():
    gpu = GpuReadings("GPU-1", "H200", power_watts=present(300, "nvml"))
    snapshot = Snapshot(0.0, load_1m=present(2, "x"), gpus=(gpu,))
    host = dict(snapshot.readings())
    assert host["load_1m"].value == 2
    assert host["on_battery"].value is None
    assert set(host) == {f.name for f in dataclasses.fields(Snapshot)} - {"taken_at", "gpus"}
    assert dict(gpu.readings())["power_watts"].value == 300
    assert "uuid" not in dict(gpu.readings())
