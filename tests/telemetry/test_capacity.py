"""Memory and CPU limits on the cgroup layouts met in practice."""

import os
from types import SimpleNamespace

import psutil
import pytest

from telemetry import cgroup
from telemetry.capacity import CapacityReader

GIB = 1 << 30
MEMINFO = f"MemTotal: {64 * 1024**2} kB\nMemFree: 1 kB\nMemAvailable: {48 * 1024**2} kB"
NO_LIMIT_V1 = "9223372036854771712"
V2 = "sys/fs/cgroup"


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def read(root):
    readings = CapacityReader(root).read()
    return {name: (reading.value, reading.source) for name, reading in readings.items()}


def test_bare_host(plant):
    assert read(plant({"proc/meminfo": MEMINFO})) == {
        "cpu_effective_count": (8, "affinity"),
        "memory_total_bytes": (64 * GIB, "/proc/meminfo"),
        "memory_available_bytes": (48 * GIB, "/proc/meminfo"),
    }


def test_v2_root_group_has_no_files_of_its_own(plant):
    root = plant(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/",
            f"{V2}/cgroup.controllers": "cpu memory",
        }
    )
    assert read(root)["memory_total_bytes"] == (64 * GIB, "/proc/meminfo")
    assert read(root)["cpu_effective_count"] == (8, "affinity")


def test_v2_nested_with_the_limit_at_an_ancestor(plant):
    root = plant(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pod/app",
            f"{V2}/cgroup.controllers": "cpu memory",
            f"{V2}/pod/memory.max": str(8 * GIB),
            f"{V2}/pod/memory.high": "max",
            f"{V2}/pod/memory.current": str(7 * GIB),
            f"{V2}/pod/memory.stat": f"anon 1\ninactive_file {2 * GIB}\nactive_file 5",
            f"{V2}/pod/cpu.max": "150000 100000",
            f"{V2}/pod/app/memory.max": "max",
            f"{V2}/pod/app/memory.current": str(GIB),
            f"{V2}/pod/app/cpu.max": "max 100000",
        }
    )
    assert read(root) == {
        "cpu_effective_count": (1.5, "cgroup-v2:/pod"),
        "memory_total_bytes": (8 * GIB, "cgroup-v2:/pod"),
        "memory_available_bytes": (3 * GIB, "cgroup-v2:/pod"),
    }


def test_v2_total_and_available_may_be_bound_by_different_groups(plant):
    root = plant(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pod/app",
            f"{V2}/pod/memory.max": str(8 * GIB),
            f"{V2}/pod/memory.current": str(8 * GIB),
            f"{V2}/pod/memory.stat": "inactive_file 0",
            f"{V2}/pod/app/memory.high": str(4 * GIB),
            f"{V2}/pod/app/memory.current": str(GIB),
            f"{V2}/pod/app/memory.stat": "inactive_file 0",
        }
    )
    assert read(root)["memory_total_bytes"] == (4 * GIB, "cgroup-v2:/pod/app")
    assert read(root)["memory_available_bytes"] == (0, "cgroup-v2:/pod")


def test_a_limit_above_the_host_leaves_the_host_in_charge(plant):
    root = plant(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/app",
            f"{V2}/app/memory.max": str(500 * GIB),
            f"{V2}/app/memory.current": "0",
            f"{V2}/app/cpu.max": "1600000 100000",
        }
    )
    assert read(root) == read(plant({"proc/self/cgroup": "0::/"}))


def test_v2_a_group_below_the_mounted_subtree_is_found(plant):
    root = plant(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/kubepods/pod7/abc/worker",
            f"{V2}/cpu.max": "200000 100000",
            f"{V2}/worker/cpu.max": "100000 100000",
        }
    )
    assert read(root)["cpu_effective_count"] == (1, "cgroup-v2:/worker")


@pytest.mark.parametrize("inside", ["", "/worker"])
def test_v2_only_the_containers_own_subtree_is_mounted(plant, inside):
    root = plant(
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": f"0::/kubepods/pod7/abc{inside}",
            f"{V2}/memory.max": str(2 * GIB),
            f"{V2}/memory.current": str(GIB),
            f"{V2}/cpu.max": "200000 100000",
            f"{V2}/worker/memory.max": "max",
        }
    )
    assert read(root) == {
        "cpu_effective_count": (2, "cgroup-v2:/"),
        "memory_total_bytes": (2 * GIB, "cgroup-v2:/"),
        "memory_available_bytes": (GIB, "cgroup-v2:/"),
    }


def v1_container(memory="memory", cpu="cpu,cpuacct"):
    return {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": f"7:memory:/docker/abc\n3:{cpu}:/docker/abc\n1:name=systemd:/docker",
        f"{V2}/memory/memory.limit_in_bytes": NO_LIMIT_V1,
        f"{V2}/memory/memory.usage_in_bytes": str(60 * GIB),
        f"{V2}/{memory}/docker/memory.limit_in_bytes": NO_LIMIT_V1,
        f"{V2}/{memory}/docker/abc/memory.limit_in_bytes": str(4 * GIB),
        f"{V2}/{memory}/docker/abc/memory.usage_in_bytes": str(3 * GIB),
        f"{V2}/{memory}/docker/abc/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}",
        f"{V2}/{cpu}/cpu.cfs_quota_us": "-1",
        f"{V2}/{cpu}/cpu.cfs_period_us": "100000",
        f"{V2}/{cpu}/docker/abc/cpu.cfs_quota_us": "50000",
        f"{V2}/{cpu}/docker/abc/cpu.cfs_period_us": "100000",
    }


LIMITED_V1 = {
    "cpu_effective_count": (0.5, "cgroup-v1:/docker/abc"),
    "memory_total_bytes": (4 * GIB, "cgroup-v1:/docker/abc"),
    "memory_available_bytes": (2 * GIB, "cgroup-v1:/docker/abc"),
}


def test_v1_container(plant):
    assert read(plant(v1_container())) == LIMITED_V1


def test_v1_without_a_limit(plant):
    root = plant(v1_container() | {"proc/self/cgroup": "7:memory:/\n3:cpu,cpuacct:/"})
    assert read(root)["memory_total_bytes"] == (64 * GIB, "/proc/meminfo")
    assert read(root)["cpu_effective_count"] == (8, "affinity")


def test_v1_writes_no_limit_as_a_huge_number(plant):
    (group,) = cgroup.groups(plant(v1_container() | {"proc/self/cgroup": "7:memory:/"}), "memory")
    assert cgroup.memory_limit(group) is None


def test_hybrid_takes_the_limits_of_v1_and_not_of_the_bare_v2_tree(plant):
    files = v1_container(cpu="cpu")
    files["proc/self/cgroup"] += "\n0::/"
    root = plant(files | {f"{V2}/unified/cgroup.procs": "1"})
    assert read(root) == LIMITED_V1


def test_hybrid_takes_from_v2_what_v1_does_not_have(plant):
    files = v1_container() | {
        "proc/self/cgroup": "7:memory:/docker/abc\n0::/app",
        f"{V2}/unified/app/cpu.max": "300000 100000",
    }
    assert read(plant(files))["cpu_effective_count"] == (3, "cgroup-v2:/app")


PRESSURE = """\
The system has 17179869184 (1048576 pages with a page size of 16384).
System-wide memory free percentage: 40%
"""


@pytest.mark.parametrize(
    ("text", "available"),
    [
        (PRESSURE, (0.4 * 16 * GIB, "memory_pressure")),
        ("memory_pressure: not permitted", (5 * GIB, "psutil")),
        (None, (5 * GIB, "psutil")),
    ],
)
def test_on_macos_the_kernel_says_what_is_free(tmp_path, monkeypatch, text, available):
    memory = SimpleNamespace(total=16 * GIB, available=5 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    tool = SimpleNamespace(output=lambda: text)
    readings = CapacityReader(tmp_path, "darwin", tool).read()
    found = readings["memory_available_bytes"]
    assert (found.value, found.source) == available
    assert readings["memory_total_bytes"].value == 16 * GIB
