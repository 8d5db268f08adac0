"""Energy of the CPU packages from the RAPL counters."""

from pathlib import Path
from typing import ClassVar

from telemetry.files import read_text
from telemetry.snapshot import Reading, missing, present


class EnergyReader:
    """Reads `cpu_energy_joules`: of all packages, counted from the first read.

    It must be read more often than a counter wraps around (minutes at full power). On most systems
    only root may read the counters.
    """

    fields: ClassVar[tuple[str, ...]] = ("cpu_energy_joules",)

    def __init__(self, root: Path = Path("/")) -> None:
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        # "psys" counts the packages again, and a package's figure includes its subzones.
        self._packages = [z for z in zones if (read_text(z / "name") or "").startswith("package")]
        self._last: list[int] = []
        self._microjoules = 0

    def read(self) -> dict[str, Reading]:
        """Return the readings. See `Reader`."""
        return {"cpu_energy_joules": self._energy()}

    def _energy(self) -> Reading:
        if not self._packages:
            return missing("rapl", "no rapl")
        try:
            # All or none: then the next read makes up for a failed one.
            counters = [int((zone / "energy_uj").read_text()) for zone in self._packages]
            ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._packages]
        except OSError as error:
            return missing("rapl", error.strerror or str(error))
        for now, before, span in zip(counters, self._last, ranges, strict=False):
            self._microjoules += now - before if now >= before else now - before + span
        self._last = counters
        return present(self._microjoules / 1e6, "rapl")
