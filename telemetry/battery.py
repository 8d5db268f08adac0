"""Charge of the machine's batteries, and whether it runs on them."""

import sys
from pathlib import Path
from typing import ClassVar

import psutil

from telemetry.files import read_int, read_text
from telemetry.snapshot import Reading, missing, present

_SOURCE = "/sys/class/power_supply"


class BatteryReader:
    """Reads `battery_charge_ratio` (of all batteries together) and `on_battery`."""

    fields: ClassVar[tuple[str, ...]] = ("battery_charge_ratio", "on_battery")

    def __init__(self, root: Path = Path("/"), system: str = sys.platform) -> None:
        """`system` is the operating system as in `sys.platform`. Linux is asked by its files."""
        self._folder = root / "sys/class/power_supply"
        self._asks_psutil = system != "linux"

    def read(self) -> dict[str, Reading]:
        """Return the readings. See `Reader`."""
        if self._asks_psutil:
            return self._from_psutil()
        if not self._folder.is_dir():
            return dict.fromkeys(self.fields, missing(_SOURCE, f"no {_SOURCE}"))
        supplies = sorted(self._folder.iterdir())
        batteries = [supply for supply in supplies if _is_system_battery(supply)]
        if not batteries:
            return dict.fromkeys(self.fields, missing(_SOURCE, "no battery"))
        lines = [s for s in supplies if read_text(s / "type") in ("Mains", "USB")]
        return {
            "battery_charge_ratio": _charge(batteries),
            "on_battery": _draining(batteries, lines),
        }

    def _from_psutil(self) -> dict[str, Reading]:
        # It has no such function on systems where it cannot know.
        battery = getattr(psutil, "sensors_battery", lambda: None)()
        if battery is None:
            return dict.fromkeys(self.fields, missing("psutil", "no battery"))
        plugged = battery.power_plugged
        return {
            "battery_charge_ratio": present(min(1.0, battery.percent / 100), "psutil"),
            "on_battery": missing("psutil", "battery state unknown")
            if plugged is None
            else present(float(not plugged), "psutil"),
        }


def _is_system_battery(supply: Path) -> bool:
    # The scope "Device" is that of the battery of a mouse or a headset.
    return (
        read_text(supply / "type") == "Battery"
        and read_text(supply / "scope") != "Device"
        and read_int(supply / "present") != 0
    )


def _charge(batteries: list[Path]) -> Reading:
    """Return the charge (0..1) of all batteries together, from the most exact files there are."""
    for kind in ("energy", "charge"):
        now = [read_int(battery / f"{kind}_now") for battery in batteries]
        full = [read_int(battery / f"{kind}_full") for battery in batteries]
        if None not in now and None not in full and (capacity := sum(filter(None, full))) > 0:
            return present(min(1.0, sum(filter(None, now)) / capacity), _SOURCE)
    percents = [read_int(battery / "capacity") for battery in batteries]
    known = [percent for percent in percents if percent is not None]
    if len(known) < len(batteries):
        return missing(_SOURCE, "battery does not report its charge")
    return present(min(1.0, sum(known) / len(known) / 100), _SOURCE)


def _draining(batteries: list[Path], lines: list[Path]) -> Reading:
    """Return 1.0 on battery power, else 0.0.

    A plugged line decides; without one, the state of the batteries.
    """
    if any(read_int(line / "online") == 1 for line in lines):
        return present(0.0, _SOURCE)
    states = {read_text(battery / "status") for battery in batteries}
    if "Discharging" in states:
        return present(1.0, _SOURCE)
    if states <= {"Charging", "Full", "Not charging"}:
        return present(0.0, _SOURCE)
    return missing(_SOURCE, "battery state unknown")
