import inspect
import re
import sys
from types import SimpleNamespace

import pynvml
import pytest

from telemetry import gpu as gpu_module
from telemetry.gpu import GpuReader


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """Stands for the module `pynvml`; a handle is the index, or the UUID of a MIG slice."""

    NVMLError = FakeNvmlError
    NVML_TEMPERATURE_GPU = 0
    nvmlClocksEventReasonSwPowerCap = 0x4  # noqa: N815
    nvmlClocksEventReasonHwSlowdown = 0x8  # noqa: N815
    nvmlClocksEventReasonSwThermalSlowdown = 0x20  # noqa: N815
    nvmlClocksEventReasonHwThermalSlowdown = 0x40  # noqa: N815
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 0x80  # noqa: N815

    def __init__(self, names=("H200",), init_error=None):
        self.names = names
        self.init_error = init_error
        self.inits = 0
        self.energy_reads = 0
        self.reasons = 0
        self.failing = set()

    def nvmlInit(self):  # noqa: N802
        self.inits += 1
        if self.init_error:
            raise FakeNvmlError(self.init_error)

    def __getattr__(self, query):
        answers = {
            "nvmlDeviceGetCount": lambda: len(self.names),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetUUID": lambda h: f"GPU-{h}{h}{h}" if isinstance(h, int) else h,
            "nvmlDeviceGetName": lambda h: self.names[h] if isinstance(h, int) else "slice",
            "nvmlDeviceGetMemoryInfo": lambda h: SimpleNamespace(total=1000, used=250),
            "nvmlDeviceGetUtilizationRates": lambda h: SimpleNamespace(gpu=75, memory=10),
            "nvmlDeviceGetPowerUsage": lambda h: 350_500,
            "nvmlDeviceGetTotalEnergyConsumption": lambda h: self.count_energy_read(),
            "nvmlDeviceGetTemperature": lambda h, sensor: 61,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda h: self.reasons,
        }
        if query in self.failing:
            return self.fail
        return answers[query]

    def count_energy_read(self):
        self.energy_reads += 1
        return 5_000 * self.energy_reads

    def fail(self, *args):
        raise FakeNvmlError("Not Supported")


@pytest.fixture
def install(monkeypatch):
    def put(nvml):
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        return nvml

    return put


def values(gpu):
    return {name: reading.value for name, reading in gpu.readings()}


def visible(names, environ):
    readings = GpuReader(environ).read()
    return [gpu.uuid for gpu in readings["gpus"]], readings["gpu_source"].reason


def test_every_query_exists_in_the_real_module():
    source = inspect.getsource(gpu_module)
    names = set(re.findall(r"\bnvml\w+[A-Z]\w+|NVML_[A-Z_]+", source))
    assert len(names) > 10
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []


def test_one_gpu_in_base_units(install):
    install(FakeNvml())
    readings = GpuReader({}).read()
    (gpu,) = readings["gpus"]
    assert (gpu.uuid, gpu.name) == ("GPU-000", "H200")
    assert values(gpu) == {
        "memory_total_bytes": 1000,
        "memory_used_bytes": 250,
        "utilization_ratio": 0.75,
        "power_watts": 350.5,
        "energy_joules": 5.0,
        "temperature_celsius": 61,
        "throttled": 0.0,
    }
    assert readings["gpu_source"].value == 1


def test_a_failing_query_costs_its_own_reading_only(install):
    install(FakeNvml()).failing.add("nvmlDeviceGetPowerUsage")
    (gpu,) = GpuReader({}).read()["gpus"]
    assert (gpu.power_watts.value, gpu.power_watts.reason) == (None, "Not Supported")
    assert [name for name, value in values(gpu).items() if value is None] == ["power_watts"]


def test_no_driver_is_no_gpu_and_is_tried_once(install):
    nvml = install(FakeNvml(init_error="NVML Shared Library Not Found"))
    reader = GpuReader({})
    for _ in range(2):
        readings = reader.read()
        assert readings["gpus"] == ()
        assert readings["gpu_source"].value is None
        assert readings["gpu_source"].reason == "NVML Shared Library Not Found"
    assert nvml.inits == 1


def test_the_slow_energy_counter_is_read_seldom(install):
    nvml = install(FakeNvml())
    seldom = GpuReader({}, energy_period_seconds=60)
    first = seldom.read()["gpus"][0].energy_joules
    assert seldom.read()["gpus"][0].energy_joules == first
    assert nvml.energy_reads == 1

    always = GpuReader({}, energy_period_seconds=0)
    assert always.read()["gpus"][0].energy_joules != always.read()["gpus"][0].energy_joules


@pytest.mark.parametrize(
    ("reasons", "throttled"), [(0x0, 0.0), (0x1, 0.0), (0x4, 0.0), (0x20, 1.0), (0x84, 1.0)]
)
def test_heat_and_power_brake_throttle_but_idling_and_the_power_limit_do_not(
    install, reasons, throttled
):
    install(FakeNvml()).reasons = reasons
    assert GpuReader({}).read()["gpus"][0].throttled.value == throttled


@pytest.mark.parametrize(
    ("chosen", "uuids"),
    [
        (None, ["GPU-000", "GPU-111", "GPU-222"]),
        ("1", ["GPU-111"]),
        ("2, 0", ["GPU-222", "GPU-000"]),
        ("GPU-222", ["GPU-222"]),
        ("GPU-1,GPU-0", ["GPU-111", "GPU-000"]),
        ("0,7,1", ["GPU-000"]),
        ("GPU-,1", []),
        ("MIG-a/b", ["MIG-a/b"]),
        ("", []),
        ("-1", []),
    ],
)
def test_cuda_visible_devices(install, chosen, uuids):
    install(FakeNvml(["H200"] * 3))
    found, reason = visible(3, {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen})
    assert found == uuids
    assert reason == ("" if uuids else "no visible device")


def test_indices_among_mixed_models_are_trusted_only_in_bus_order(install):
    install(FakeNvml(["T4", "H200"]))
    found, reason = visible(2, {"CUDA_VISIBLE_DEVICES": "0"})
    assert found == []
    assert "PCI_BUS_ID" in reason
    in_order = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert visible(2, in_order) == (["GPU-000"], "")
    assert visible(2, {"CUDA_VISIBLE_DEVICES": "GPU-1"}) == (["GPU-111"], "")
