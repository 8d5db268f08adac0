"""The CPUs and the memory that this process may use: those of the host, or of its cgroups."""

import os
import sys
from pathlib import Path
from typing import ClassVar

import psutil

from telemetry import cgroup, macos
from telemetry.files import read_text
from telemetry.snapshot import Reading, present
from telemetry.system_tool import SystemTool


class CapacityReader:
    """Reads `cpu_effective_count`, `memory_total_bytes` and `memory_available_bytes`."""

    fields: ClassVar[tuple[str, ...]] = (
        "cpu_effective_count",
        "memory_total_bytes",
        "memory_available_bytes",
    )

    def __init__(
        self,
        root: Path = Path("/"),
        system: str = sys.platform,
        tool: SystemTool | None = None,
    ) -> None:
        """`system` is the operating system as in `sys.platform`, `tool` in place of its own."""
        self._root = root
        self._tool = macos.memory_tool() if tool is None and system == "darwin" else tool
        # Read once: an OpenMP runtime may later pin the calling thread to a single core.
        self._affinity = _affinity()
        # Also once: finding the groups takes longer than reading them, and a process stays in them.
        self._cpu_groups = cgroup.groups(root, "cpu")
        self._memory_groups = cgroup.groups(root, "memory")

    def read(self) -> dict[str, Reading]:
        """Return the readings. See `Reader`."""
        total, available = self._memory()
        return {
            "cpu_effective_count": self._cpus(),
            "memory_total_bytes": total,
            "memory_available_bytes": available,
        }

    def _cpus(self) -> Reading:
        counts = [self._affinity]
        for group in self._cpu_groups:
            quota = cgroup.cpu_quota(group)
            if quota is not None:
                counts.append((quota, group.source))
        return present(*min(counts))

    def _memory(self) -> tuple[Reading, Reading]:
        total, available, source = self._host_memory()
        totals, availables = [(total, source)], [(available, source)]
        for group in self._memory_groups:
            limit = cgroup.memory_limit(group)
            if limit is None:
                continue
            totals.append((limit, group.source))
            used = cgroup.memory_used(group)
            if used is not None:
                availables.append((max(0, limit - used), group.source))
        return present(*min(totals)), present(*min(availables))

    def _host_memory(self) -> tuple[float, float, str]:
        """Return total bytes, available bytes, and their source."""
        kibibytes = {}
        for line in (read_text(self._root / "proc/meminfo") or "").splitlines():
            name, _, rest = line.partition(":")
            kibibytes[name] = rest.split()
        if "MemTotal" in kibibytes and "MemAvailable" in kibibytes:
            total, available = (int(kibibytes[k][0]) * 1024 for k in ("MemTotal", "MemAvailable"))
            return total, available, "/proc/meminfo"
        memory = psutil.virtual_memory()
        # On macOS psutil leaves out what the kernel could give back at once, such as file caches.
        text = None if self._tool is None else self._tool.output()
        ratio = macos.free_memory_ratio(text) if text else None
        if ratio is not None:
            return memory.total, ratio * memory.total, "memory_pressure"
        return memory.total, memory.available, "psutil"


def _affinity() -> tuple[float, str]:
    """Return the number of CPUs that this process may run on, and the source."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)), "affinity"
    return psutil.cpu_count(), "psutil"
