"""The hottest temperature sensor of the host, and how far heat slows its processors down."""

import sys
from pathlib import Path
from typing import ClassVar

from telemetry import macos, windows
from telemetry.files import read_int, read_text
from telemetry.snapshot import Reading, missing, present
from telemetry.system_tool import SystemTool

# Of hwmon only those of processors: reading the sensor of a disk or a network card can block.
_CPU_DRIVERS = {"coretemp", "k10temp", "zenpower"}
# Sensors that are off or not connected report absurd values.
_PLAUSIBLE_CELSIUS = (-40.0, 150.0)


class ThermalReader:
    """Reads `temperature_celsius` and `cpu_speed_limit_ratio`.

    On Linux the temperature is that of all thermal zones and the processors' own sensors. macOS
    tells the speed limit alone, Windows both.
    """

    fields: ClassVar[tuple[str, ...]] = ("temperature_celsius", "cpu_speed_limit_ratio")

    def __init__(
        self,
        root: Path = Path("/"),
        system: str = sys.platform,
        tool: SystemTool | None = None,
    ) -> None:
        """`system` is the operating system as in `sys.platform`, `tool` in place of its own."""
        self._system = system
        self._tool = tool
        if tool is None and system == "darwin":
            self._tool = macos.thermal_tool()
        elif tool is None and system == "win32":
            self._tool = windows.thermal_tool()
        sensors = root / "sys/class"
        self._files = [
            (zone / "temp", f"thermal:{read_text(zone / 'type')}")
            for zone in sorted(sensors.glob("thermal/thermal_zone*"))
        ]
        for chip in sorted(sensors.glob("hwmon/hwmon*")):
            name = read_text(chip / "name")
            if name in _CPU_DRIVERS:
                self._files += [(file, f"hwmon:{name}") for file in chip.glob("temp*_input")]

    def read(self) -> dict[str, Reading]:
        """Return the readings. See `Reader`."""
        text = None if self._tool is None else self._tool.output()
        celsius, limits = self._sensors(), []
        if text and self._system == "darwin":
            limit = macos.speed_limit_ratio(text)
            limits = [] if limit is None else [(limit, "pmset")]
        elif text and self._system == "win32":
            zones = windows.thermal_zones(text)
            celsius = [(temperature, f"thermal:{name}") for name, temperature, _ in zones]
            limits = [(limit, f"thermal:{name}") for name, _, limit in zones]
        low, high = _PLAUSIBLE_CELSIUS
        celsius = [one for one in celsius if low < one[0] < high]
        return {
            "temperature_celsius": present(*max(celsius))
            if celsius
            else missing("thermal", "no temperature sensor"),
            "cpu_speed_limit_ratio": present(*min(limits))
            if limits
            else missing("thermal", "the system does not report a limit"),
        }

    def _sensors(self) -> list[tuple[float, str]]:
        """Return degrees and source of each sensor in /sys."""
        found = []
        for file, source in self._files:
            millidegrees = read_int(file)
            if millidegrees is not None:
                found.append((millidegrees / 1000, source))
        return found
