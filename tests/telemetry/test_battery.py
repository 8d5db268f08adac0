from types import SimpleNamespace

import psutil
import pytest

from telemetry.battery import BatteryReader

SUPPLY = "sys/class/power_supply"


def battery(name="BAT0", now=30, full=60, status="Discharging", kind="energy"):
    return {
        f"{SUPPLY}/{name}/type": "Battery",
        f"{SUPPLY}/{name}/status": status,
        f"{SUPPLY}/{name}/{kind}_now": str(now),
        f"{SUPPLY}/{name}/{kind}_full": str(full),
        f"{SUPPLY}/{name}/capacity": "99",
    }


def mains(online):
    return {f"{SUPPLY}/AC/type": "Mains", f"{SUPPLY}/AC/online": str(online)}


def read(root):
    readings = BatteryReader(root, "linux").read()
    return readings["battery_charge_ratio"].value, readings["on_battery"].value


@pytest.mark.parametrize("kind", ["energy", "charge"])
def test_unplugged_laptop(plant, kind):
    assert read(plant(battery(kind=kind) | mains(0))) == (0.5, 1.0)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown", "Discharging"])
def test_a_plugged_line_decides_whatever_the_battery_says(plant, status):
    assert read(plant(battery(status=status) | mains(1)))[1] == 0.0


@pytest.mark.parametrize(
    ("status", "on_battery"), [("Discharging", 1.0), ("Full", 0.0), ("Unknown", None)]
)
def test_without_a_line_the_battery_decides(plant, status, on_battery):
    assert read(plant(battery(status=status)))[1] == on_battery


def test_two_batteries_are_weighed_by_size(plant):
    root = plant(battery("BAT0", now=20, full=20) | battery("BAT1", now=10, full=40))
    assert read(root) == (0.5, 1.0)


def test_the_percentage_serves_where_nothing_finer_is_reported(plant):
    root = plant({f"{SUPPLY}/BAT0/type": "Battery", f"{SUPPLY}/BAT0/capacity": "37"})
    assert read(root) == (0.37, None)


@pytest.mark.parametrize(
    "files",
    [
        mains(1),
        battery("mouse") | {f"{SUPPLY}/mouse/scope": "Device"},
        battery() | {f"{SUPPLY}/BAT0/present": "0"},
    ],
)
def test_no_battery_of_the_machine_is_missing_not_full(plant, files):
    for reading in BatteryReader(plant(files), "linux").read().values():
        assert (reading.value, reading.reason) == (None, "no battery")


def test_no_power_supply_class_is_missing(tmp_path):
    assert read(tmp_path) == (None, None)


@pytest.mark.parametrize("system", ["darwin", "win32"])
@pytest.mark.parametrize(("plugged", "on_battery"), [(True, 0.0), (False, 1.0), (None, None)])
def test_elsewhere_psutil_knows_the_battery(system, plugged, on_battery, tmp_path, monkeypatch):
    battery = SimpleNamespace(percent=37, secsleft=4200, power_plugged=plugged)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    readings = BatteryReader(tmp_path, system).read()
    assert (readings["battery_charge_ratio"].value, readings["on_battery"].value) == (
        0.37,
        on_battery,
    )
    assert readings["battery_charge_ratio"].source == "psutil"


def test_elsewhere_too_no_battery_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    for reading in BatteryReader(tmp_path, "darwin").read().values():
        assert (reading.value, reading.reason) == (None, "no battery")
    monkeypatch.delattr(psutil, "sensors_battery")
    assert BatteryReader(tmp_path, "win32").read()["on_battery"].value is None
