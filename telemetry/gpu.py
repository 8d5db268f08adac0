"""NVIDIA GPUs through NVML. Without a driver there are no GPUs, which is not an error."""

import os
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

from telemetry.reader import Readings
from telemetry.snapshot import GpuReadings, Reading, missing, present


class _NoGpuError(Exception):
    """No device can be read; the message is the reason."""


class _Device:
    """An NVML handle, and the last value of its energy counter, which is slow to read."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:  # noqa: ANN401
        self.handle = handle
        self.uuid: str = nvml.nvmlDeviceGetUUID(handle)
        self.name: str = nvml.nvmlDeviceGetName(handle)
        self.energy: Reading | None = None
        self.energy_read_at = 0.0


class GpuReader:
    """Reads `gpu_source` and `gpus`, those that CUDA_VISIBLE_DEVICES leaves visible.

    The first read loads NVML. The energy counter takes milliseconds; it is read every
    `energy_period_seconds`, and its last value is repeated in between.
    """

    fields: ClassVar[tuple[str, ...]] = ("gpu_source",)

    def __init__(
        self, environ: Mapping[str, str] = os.environ, energy_period_seconds: float = 2.0
    ) -> None:
        self._environ = environ
        self._energy_period = energy_period_seconds
        self._nvml: Any = None
        self._devices: list[_Device] = []
        self._absent: Reading | None = None

    def read(self) -> Readings:
        """Return the readings. See `Reader`."""
        if self._nvml is None and self._absent is None:
            self._open()
        if self._absent is not None:
            return {"gpu_source": self._absent, "gpus": ()}
        return {
            "gpu_source": present(len(self._devices), "nvml"),
            "gpus": tuple(self._read_device(device) for device in self._devices),
        }

    def _open(self) -> None:
        import pynvml  # Imported here, so that hosts without a GPU do not need it.

        try:
            pynvml.nvmlInit()
            self._devices = _visible_devices(pynvml, self._environ)
        except (pynvml.NVMLError, _NoGpuError) as error:
            self._absent = missing("nvml", str(error))
        else:
            self._nvml = pynvml

    def _read_device(self, device: _Device) -> GpuReadings:
        nvml, handle = self._nvml, device.handle
        return GpuReadings(
            uuid=device.uuid,
            name=device.name,
            memory_total_bytes=self._query(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total),
            memory_used_bytes=self._query(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            utilization_ratio=self._query(
                lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            ),
            power_watts=self._query(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            energy_joules=self._energy(device),
            temperature_celsius=self._query(
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            throttled=self._query(lambda: _throttled(nvml, handle)),
        )

    def _energy(self, device: _Device) -> Reading:
        now = time.monotonic()
        if device.energy is None or now - device.energy_read_at >= self._energy_period:
            device.energy_read_at = now
            device.energy = self._query(
                lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(device.handle) / 1000
            )
        return device.energy

    def _query(self, ask: Callable[[], float]) -> Reading:
        try:
            return present(float(ask()), "nvml")
        except self._nvml.NVMLError as error:
            return missing("nvml", str(error))


def _throttled(nvml: ModuleType, handle: Any) -> float:  # noqa: ANN401
    """Return 1.0 while heat or a power brake slows the clocks, else 0.0.

    The software power cap does not count: a busy, healthy GPU works at its power limit.
    """
    slowed = (
        nvml.nvmlClocksEventReasonHwSlowdown
        | nvml.nvmlClocksEventReasonHwThermalSlowdown
        | nvml.nvmlClocksEventReasonSwThermalSlowdown
        | nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    )
    return float(bool(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle) & slowed))


def _visible_devices(nvml: ModuleType, environ: Mapping[str, str]) -> list[_Device]:
    """Return the devices that CUDA shows, in its order. Raises NVMLError or _NoGpuError."""
    count = nvml.nvmlDeviceGetCount()
    devices = [_Device(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count)]
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        by_bus = environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
        same_order = by_bus or len({device.name for device in devices}) == 1
        devices = _select(nvml, devices, chosen.split(","), same_order)
    if not devices:
        raise _NoGpuError("no visible device")
    return devices


def _select(
    nvml: ModuleType, devices: list[_Device], wanted: list[str], same_order: bool
) -> list[_Device]:
    chosen = []
    for entry in map(str.strip, wanted):
        if entry.isdigit() and not same_order:
            # CUDA numbers the fastest device 0, NVML goes by bus: it would be another device.
            raise _NoGpuError(
                "mixed GPU models: set CUDA_DEVICE_ORDER=PCI_BUS_ID or choose by UUID"
            )
        if entry.isdigit():
            matches = devices[int(entry) : int(entry) + 1]
        elif entry.startswith("MIG-"):
            matches = [_Device(nvml, nvml.nvmlDeviceGetHandleByUUID(entry))]
        else:
            matches = [device for device in devices if entry and device.uuid.startswith(entry)]
        if len(matches) != 1:
            break  # As in CUDA: devices after an invalid entry are not visible.
        chosen += matches
    return chosen
