"""The cgroups of this process and their limits: version 1, version 2, and both at once."""

from dataclasses import dataclass
from pathlib import Path

from telemetry.files import read_int, read_text

# v1 writes "no limit" as the largest page-aligned 63-bit number.
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Group:
    """One cgroup directory, the version (1 or 2), and the source that readings name."""

    directory: Path
    version: int
    source: str


def groups(root: Path, controller: str) -> list[Group]:
    """Return the process's group under a controller ("memory", "cpu"), then its visible ancestors.

    The list is empty where there are no cgroups.
    """
    for names, path in _memberships(root):
        if controller in names.split(","):
            base = root / "sys/fs/cgroup"
            mount = base / names if (base / names).is_dir() else base / controller
            return _lineage(mount, path, version=1)
    return unified_groups(root)


def unified_groups(root: Path) -> list[Group]:
    """Return the process's v2 group, then its visible ancestors; empty if v2 is not mounted."""
    for names, path in _memberships(root):
        if not names:
            base = root / "sys/fs/cgroup"
            hybrid = base / "unified"
            return _lineage(hybrid if hybrid.is_dir() else base, path, version=2)
    return []


def memory_limit(group: Group) -> int | None:
    """Return the bytes that the group may hold, or None if it has no limit of its own.

    `memory.high` counts as a limit: beyond it the kernel stalls every allocation.
    """
    names = ("memory.limit_in_bytes",) if group.version == 1 else ("memory.max", "memory.high")
    # "max" is not an integer and reads as None. A v2 root group has no such file: None as well.
    limits = [read_int(group.directory / name) for name in names]
    return min((n for n in limits if n is not None and n < _UNLIMITED_BYTES), default=None)


def memory_used(group: Group) -> int | None:
    """Return the bytes that the group uses, without droppable page cache; None if unknown."""
    v1 = group.version == 1
    used = read_int(group.directory / ("memory.usage_in_bytes" if v1 else "memory.current"))
    stat = read_text(group.directory / "memory.stat")
    if used is None or stat is None:
        return used
    # The usage counts the page cache. In v1, a figure of its own includes the child groups.
    cache = _stat_value(stat, "total_inactive_file" if v1 else "inactive_file")
    return max(0, used - cache)


def cpu_quota(group: Group) -> float | None:
    """Return the CPUs that the group may use at once, or None if it has no quota of its own."""
    if group.version == 1:
        quota = read_int(group.directory / "cpu.cfs_quota_us")
        period = read_int(group.directory / "cpu.cfs_period_us")
        return quota / period if quota and period and quota > 0 else None
    words = (read_text(group.directory / "cpu.max") or "max").split()
    return None if words[0] == "max" else int(words[0]) / int(words[1])


def _memberships(root: Path) -> list[tuple[str, str]]:
    """Return (controllers, path) of each hierarchy. That of v2 lists no controllers."""
    text = read_text(root / "proc/self/cgroup") or ""
    lines = [line.split(":", 2) for line in text.splitlines()]
    return [(line[1], line[2]) for line in lines if len(line) == 3]


def _lineage(mount: Path, path: str, version: int) -> list[Group]:
    """Return the group at `path` below `mount` and its ancestors, the innermost first."""
    if not mount.is_dir():
        return []
    parts = [part for part in path.split("/") if part not in ("", "..")]
    # In a container the mount often shows its own subtree only, while the path still names the
    # host's directories: drop leading ones until the rest is there.
    while parts and not mount.joinpath(*parts).is_dir():
        parts.pop(0)
    return [
        Group(
            mount.joinpath(*parts[:depth]), version, f"cgroup-v{version}:/{'/'.join(parts[:depth])}"
        )
        for depth in range(len(parts), -1, -1)
    ]


def _stat_value(stat: str, key: str) -> int:
    for line in stat.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
