"""Measures on one device until time is over; `benchmarks.gpu_check` runs it as a process.

The arguments are the file for what is found, the device, seconds, and `quick` or `whole`. The file
is written anew after each part, so nothing is lost if the process is ended.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.figures import Figures
from benchmarks.gpu_check.shapes import Sizes, random_model, sizes_of
from benchmarks.gpu_check.training import train
from benchmarks.support.machine import copy_bandwidth
from pruners.support.files import write_json

_SHAPES_SHARE = 0.75  # of the time; the rest is for training
_ROOM = 1.25  # of memory over what a model and its cache take


def measure(out: Path, device: torch.device, seconds: float, sizes: dict[str, Sizes]) -> None:
    """Measure all shapes, then train, and write to `out` what is found."""
    end = time.monotonic() + seconds
    for_shapes = time.monotonic() + _SHAPES_SHARE * seconds
    found: dict[str, Any] = {"copy_bandwidth": copy_bandwidth(device), "shapes": {}}
    write_json(out, found)
    for index, (name, one) in enumerate(sizes.items()):
        free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else 10**12
        if one.bytes * _ROOM > free:
            gib = one.bytes * _ROOM / 2**30
            found["shapes"][name] = {"left_out": f"it needs {gib:.0f} GiB of the GPU's memory"}
            continue
        share = (for_shapes - time.monotonic()) / (len(sizes) - index)
        until = time.monotonic() + share
        figures = Figures(random_model(name, one.config, device), one, found["copy_bandwidth"])
        for part, values in figures.parts(until):
            found["shapes"].setdefault(name, {})[part] = values
            write_json(out, found)
        del figures
        if device.type == "cuda":
            torch.cuda.empty_cache()
    found["training"] = train(next(iter(sizes.values())), device, end)
    write_json(out, found)


if __name__ == "__main__":
    target, chosen, limit, size = sys.argv[1:]
    measure(Path(target), torch.device(chosen), float(limit), sizes_of(size == "quick"))
