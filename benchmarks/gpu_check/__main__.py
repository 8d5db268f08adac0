"""All that there is to measure on a GPU, in under 8 minutes: `python -m benchmarks.gpu_check`.

First the tests that need a GPU. Then decode steps, prompts and CUDA graphs of models of the 1B and
8B shapes with random weights in bf16, beside the GPU's measured copy bandwidth; variants and
readers of them; and in the time that is left the training of readers' maps. Tests and measurements
are processes of their own, which are ended when their time is over; what they had found until then
counts. Prints the rows for docs/benchmarks.md. `--quick` takes a tiny model, to see that it works,
also with `--device cpu`.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.report import table_rows
from benchmarks.support.results import option_parser, save_result
from telemetry.machine import describe

_TEST_SHARE = 0.3  # of the time, at most
_END_SECONDS = 5.0  # to write the result
_ROOT = Path(__file__).parents[2]
_TESTS = (
    "tests/server/engine/backends",
    "tests/server/engine/loading/test_memory_check.py",
    "tests/pruners/distill",
)
_COUNTED = ("passed", "failed", "skipped", "errors")


def main() -> None:
    """Run everything and print the rows. The exit code is 1 if a test failed."""
    options = option_parser(__doc__)
    options.add_argument("--seconds", type=float, default=480, help="time for everything")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--quick", action="store_true", help="a tiny model instead")
    arguments = options.parse_args()
    started = time.monotonic()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no GPU here; `--device cpu --quick` shows that it works")
    tests = run_tests(_TEST_SHARE * arguments.seconds)
    left = arguments.seconds - (time.monotonic() - started) - _END_SECONDS
    found = run_measurements(arguments.device, arguments.quick, left)
    result = {
        "machine": describe(),
        "device": arguments.device,
        "quick": arguments.quick,
        "tests": tests,
        **found,
        "seconds": time.monotonic() - started,
    }
    print(table_rows(result))
    print(f"written to {save_result(f'gpu-check-{_slug(result)}', result, arguments.json)}")
    if tests["failed"] or tests["errors"] or not found:
        sys.exit(1)


def run_tests(seconds: float) -> dict[str, Any]:
    """Run the tests that need a GPU; without one they are skipped. Return how many did what."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", *_TESTS]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=_ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
        output, ended = done.stdout, "in time"
    except subprocess.TimeoutExpired as error:
        output, ended = (error.stdout or b"").decode(errors="replace"), "after their time was over"
    print(output.strip())
    counts = {name: _count(output, name) for name in _COUNTED}
    return {**counts, "ended": ended, "seconds": time.monotonic() - started}


def run_measurements(device: str, quick: bool, seconds: float) -> dict[str, Any]:
    """Return all that a process of its own has found within some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.gpu_check.measure", str(out), device]
        command += [f"{0.95 * seconds:.1f}", "quick" if quick else "whole"]
        try:
            subprocess.run(command, cwd=_ROOT, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            print("measurements ended: their time was over")
        if not out.exists():
            return {}
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def _count(output: str, name: str) -> int:
    """Return how many tests pytest's last line says of one kind."""
    found = re.search(rf"(\d+) {name.removesuffix('s')}s?\b", output)
    return int(found[1]) if found else 0


def _slug(result: dict[str, Any]) -> str:
    name = result["machine"].get("gpu", result["machine"]["processor"])
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
