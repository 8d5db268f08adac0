"""What the figures were measured on, and how results are kept."""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pruners.support.files import TargetError, check_file, write_json

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


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--json", type=_target, help="the result's file; default benchmarks/results")
    return found


def _target(name: str) -> Path:
    path = Path(name)
    try:
        check_file(path)
    except TargetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as a result says it; of files their names."""
    return {
        name: value.name if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
        if name != "json"
    }


def save(name: str, result: dict[str, Any], path: Path | None = None) -> Path:
    """Writes a result as JSON to `path`, by default into `benchmarks/results/`."""
    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_json(path, result)
