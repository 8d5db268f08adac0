"""The hottest temperature sensor of the host."""

from pathlib import Path
from typing import ClassVar

from telemetry.files import read_int, read_text
from telemetry.snapshot import Reading, missing, present

# Of hwmon only those of processors: reading the sensor of a disk or a network card can block.
_CPU_DRIVERS = {"coretemp", "k10temp", "zenpower"}
# Sensors that are off or not connected report absurd values.
_PLAUSIBLE_CELSIUS = (-40.0, 150.0)


class ThermalReader:
    """Reads `temperature_celsius` from all thermal zones and the processors' own sensors."""

    fields: ClassVar[tuple[str, ...]] = ("temperature_celsius",)

    def __init__(self, root: Path = Path("/")) -> None:
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
        low, high = _PLAUSIBLE_CELSIUS
        celsius = []
        for file, source in self._files:
            millidegrees = read_int(file)
            if millidegrees is not None and low < millidegrees / 1000 < high:
                celsius.append((millidegrees / 1000, source))
        if not celsius:
            return {"temperature_celsius": missing("thermal", "no temperature sensor")}
        return {"temperature_celsius": present(*max(celsius))}
