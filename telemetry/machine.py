"""The machine that figures were measured on."""

import hashlib
import platform
import time
from pathlib import Path
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """Return processor, GPU, instruction set, threads, the version of PyTorch, and the day."""
    machine: dict[str, Any] = {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "measured": time.strftime("%Y-%m-%d"),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def device_fingerprint(machine: dict[str, Any], weights: str) -> str:
    """Return 16 hexadecimal digits, equal where measured times are comparable.

    That is on the same machine, with the same threads, PyTorch and `weights` (their format).
    """
    parts = sorted((key, value) for key, value in machine.items() if key != "measured")
    return hashlib.sha256(repr((parts, weights)).encode()).hexdigest()[:16]


def _processor() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return model
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return f"{fields.get('model name', model)} (family {fields.get('cpu family', '?')})"
