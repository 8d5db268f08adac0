"""What the machine can do at most, measured by small loops of C++ that do nothing else."""

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from ctypes import c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-march=native", "-std=c++20", "-shared", "-fPIC", "-pthread")
READ_BYTES = 2**28  # far more than the caches hold
REPEATS = 5  # of which the best counts: a limit is what the machine can do undisturbed


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """Limits of a machine; `multiply_adds` are per cycle of one core, by the type of operands.

    A type is missing if the processor has no instruction for it.
    """

    clock_hz: float
    read_bytes_per_second: float
    multiply_adds: dict[str, float]


def measure_limits(threads: int) -> MachineLimits:
    """Measure the clock, the read bandwidth of `threads` threads, and multiply-adds per cycle.

    Raises `RuntimeError` without a C++ compiler; `CXX` may name one.
    """
    library = _compiled()
    clock = max(library.limit_clock_hz() for _ in range(REPEATS))
    data = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    read = max(
        library.limit_read_bytes_per_second(data.data_ptr(), len(data), threads)
        for _ in range(REPEATS)
    )
    rates = {}
    for kind in ("int8", "fp32", "bf16"):
        function = getattr(library, f"limit_{kind}_multiply_adds_per_cycle")
        if rate := max(function(clock) for _ in range(REPEATS)):
            rates[kind] = rate
    return MachineLimits(clock, read, rates)


def _compiled() -> ctypes.CDLL:
    compiler = shlex.split(os.environ.get("CXX") or shutil.which("c++") or "")
    if not compiler:
        raise RuntimeError("no C++ compiler; CXX may name one")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "limits.so"
        subprocess.run([*compiler, *FLAGS, str(SOURCE), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))  # stays loaded when the file is gone
    library.limit_clock_hz.restype = c_double
    library.limit_read_bytes_per_second.restype = c_double
    library.limit_read_bytes_per_second.argtypes = (c_void_p, c_int64, c_int)
    for kind in ("int8", "fp32", "bf16"):
        function = getattr(library, f"limit_{kind}_multiply_adds_per_cycle")
        function.restype, function.argtypes = c_double, (c_double,)
    return library
