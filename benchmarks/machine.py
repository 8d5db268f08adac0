"""What the figures were measured on, and how results are kept."""

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


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
