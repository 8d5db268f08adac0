"""The readings of the machine at one moment: immutable, and each of them optional."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Reading:
    """One measured value, or the reason why there is none.

    `source` says where the value is from ("psutil", "cgroup-v2:/a/b", "nvml"). Raises `ValueError`
    unless there is either a `value` or a `reason`.
    """

    value: float | None
    source: str
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.reason):
            raise ValueError("a reading has either a value or a reason for having none")


def present(value: float, source: str) -> Reading:
    """Return a reading with a value, in the unit that the field's name states."""
    return Reading(value, source)


def missing(source: str, reason: str) -> Reading:
    """Return a reading without a value; `reason` says why and must not be empty."""
    return Reading(None, source, reason)


_NOT_READ = missing("none", "not read")


@dataclass(frozen=True, slots=True)
class GpuReadings:
    """The readings of one GPU. Units are in the names; ratios are 0..1.

    `memory_used_bytes` is all that is not free, of all processes. `utilization_ratio` is the share
    of time in which any kernel ran. `energy_joules` counts since the driver was loaded and
    is read less often than the rest. `throttled` is 1.0 or 0.0.
    """

    uuid: str
    name: str
    memory_total_bytes: Reading = _NOT_READ
    memory_used_bytes: Reading = _NOT_READ
    utilization_ratio: Reading = _NOT_READ
    power_watts: Reading = _NOT_READ
    energy_joules: Reading = _NOT_READ
    temperature_celsius: Reading = _NOT_READ
    throttled: Reading = _NOT_READ

    def readings(self) -> Iterator[tuple[str, Reading]]:
        """Yield (field name, reading) of this GPU."""
        return _readings(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All readings of one sample. Units are in the names; ratios are 0..1.

    `taken_at` is `time.monotonic()` seconds when the sample began. `cpu_effective_count` and the
    two memory readings are what this process may use: the host's, or a tighter cgroup limit.
    `temperature_celsius` is the hottest sensor. `cpu_speed_limit_ratio` is the share of their speed
    to which heat limits the processors. `cpu_energy_joules` counts from the first sample.
    `on_battery` is 1.0 or 0.0. `gpu_source` is the number of visible GPUs, or why there is none.
    """

    taken_at: float
    cpu_utilization_ratio: Reading = _NOT_READ
    cpu_effective_count: Reading = _NOT_READ
    cpu_frequency_hertz: Reading = _NOT_READ
    load_1m: Reading = _NOT_READ
    memory_total_bytes: Reading = _NOT_READ
    memory_available_bytes: Reading = _NOT_READ
    process_resident_bytes: Reading = _NOT_READ
    cpu_pressure_ratio: Reading = _NOT_READ
    memory_pressure_ratio: Reading = _NOT_READ
    temperature_celsius: Reading = _NOT_READ
    cpu_speed_limit_ratio: Reading = _NOT_READ
    disk_free_bytes: Reading = _NOT_READ
    battery_charge_ratio: Reading = _NOT_READ
    on_battery: Reading = _NOT_READ
    cpu_energy_joules: Reading = _NOT_READ
    gpu_source: Reading = _NOT_READ
    gpus: tuple[GpuReadings, ...] = ()

    def age(self) -> float:
        """Return the seconds since the sample began."""
        return time.monotonic() - self.taken_at

    def readings(self) -> Iterator[tuple[str, Reading]]:
        """Yield (field name, reading) of the host; those of the GPUs are in `gpus`."""
        return _readings(self)


def _readings(holder: Snapshot | GpuReadings) -> Iterator[tuple[str, Reading]]:
    for field in fields(holder):
        value = getattr(holder, field.name)
        if isinstance(value, Reading):
            yield field.name, value
