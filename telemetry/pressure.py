"""Pressure stall information: the share of time in which some task waited for CPU or memory."""

from pathlib import Path
from typing import ClassVar

from telemetry import cgroup
from telemetry.files import read_text
from telemetry.snapshot import Reading, missing, present


class PressureReader:
    """Reads the "some" averages over 10 s of this process's cgroup, or else of the host."""

    fields: ClassVar[tuple[str, ...]] = ("cpu_pressure_ratio", "memory_pressure_ratio")

    def __init__(self, root: Path = Path("/")) -> None:
        groups = cgroup.unified_groups(root)[:1]
        self._cpu, self._memory = (_files(root, groups, name) for name in ("cpu", "memory"))

    def read(self) -> dict[str, Reading]:
        """Return the readings. See `Reader`."""
        return {
            "cpu_pressure_ratio": _pressure(self._cpu),
            "memory_pressure_ratio": _pressure(self._memory),
        }


def _files(root: Path, groups: list[cgroup.Group], resource: str) -> list[tuple[Path, str]]:
    """Return the files that may hold the pressure, the best first, each with its source."""
    files = [(group.directory / f"{resource}.pressure", group.source) for group in groups]
    return [*files, (root / "proc/pressure" / resource, f"/proc/pressure/{resource}")]


def _pressure(files: list[tuple[Path, str]]) -> Reading:
    for path, source in files:
        percent = _some_avg10(read_text(path) or "")
        if percent is not None:
            return present(percent / 100, source)
    return missing("psi", "psi not available")


def _some_avg10(text: str) -> float | None:
    for line in text.splitlines():
        if line.startswith("some "):
            averages = dict(word.split("=") for word in line.split()[1:])
            return float(averages["avg10"])
    return None
