"""CPU use, frequency and load of the host, and the process's memory."""

from pathlib import Path
from typing import ClassVar

import psutil

from telemetry.files import read_int, read_text
from telemetry.snapshot import Reading, missing, present

# Reading a core's frequency can wake the core, or wait for it: only some cores are read.
_FREQUENCY_CORES = 8


class HostReader:
    """Reads figures of the host from /proc and /sys, or through psutil where these are missing."""

    fields: ClassVar[tuple[str, ...]] = (
        "cpu_utilization_ratio",
        "cpu_frequency_hertz",
        "load_1m",
        "process_resident_bytes",
    )

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._process = psutil.Process()
        self._last_times: tuple[float, float] | None = None
        cores = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_cur_freq"))
        self._frequency_files = cores[:: max(1, len(cores) // _FREQUENCY_CORES)]

    def read(self) -> dict[str, Reading]:
        """Return the readings. See `Reader`."""
        return {
            "cpu_utilization_ratio": self._utilization(),
            "cpu_frequency_hertz": self._frequency(),
            "load_1m": self._load(),
            "process_resident_bytes": present(self._process.memory_info().rss, "psutil"),
        }

    def _utilization(self) -> Reading:
        busy, total, source = _cpu_times(self._root)
        last, self._last_times = self._last_times, (busy, total)
        if last is None:
            return missing(source, "first sample")
        elapsed = total - last[1]
        if elapsed <= 0:
            return missing(source, "no time passed since the last sample")
        # The kernel's idle and iowait counters may go back a little.
        return present(min(1.0, max(0.0, (busy - last[0]) / elapsed)), source)

    def _frequency(self) -> Reading:
        kilohertz = [k for k in map(read_int, self._frequency_files) if k is not None]
        if not kilohertz:
            return missing("cpufreq", "no cpufreq")
        return present(1000 * sum(kilohertz) / len(kilohertz), "cpufreq")

    def _load(self) -> Reading:
        text = read_text(self._root / "proc/loadavg")
        if text:
            return present(float(text.split()[0]), "/proc/loadavg")
        return present(psutil.getloadavg()[0], "psutil")


def _cpu_times(root: Path) -> tuple[float, float, str]:
    """Return busy and total CPU time since boot, in the same unit, and their source."""
    text = read_text(root / "proc/stat")
    if text:
        # user nice system idle iowait irq softirq steal; guest time is in user and nice already.
        ticks = [int(word) for word in text.splitlines()[0].split()[1:9]]
        return sum(ticks) - sum(ticks[3:5]), sum(ticks), "/proc/stat"
    times = psutil.cpu_times()
    return sum(times) - times.idle, sum(times), "psutil"
