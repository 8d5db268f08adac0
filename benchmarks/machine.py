"""What the figures were measured on, and how results are kept."""

import json
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Processor, cores, threads and versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(
            (part.strip() for part in line.split(":", 1))
            for line in info.read_text().splitlines()
            if ":" in line
        )
        model = f"{fields.get('model name', model)} (family {fields.get('cpu family', '?')})"
    return {
        "processor": model,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "measured": time.strftime("%Y-%m-%d"),
    }


def copy_bandwidth() -> float:
    """Bytes per second (read plus written) of a copy far larger than the caches; best of five."""
    source = torch.ones(2**28, dtype=torch.uint8)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    return 2 * source.numel() / best


def spread(values: list[float]) -> float:
    """Half the range over the median: how far single runs were off."""
    return (max(values) - min(values)) / 2 / median(values)


def save(name: str, result: dict[str, Any]) -> Path:
    """Writes a result as JSON into `benchmarks/results/`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
