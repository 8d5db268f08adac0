"""Hostile requests and connections against a live server: `python -m benchmarks.abuse`.

Some good clients ask all the time, and their answers are known. Beside them come 500 requests and
connections of some ninety kinds that a server must bear: broken, huge, slow, half-sent, cut off.
It fails (exit code 1) if a good answer is lost or changed, if anything but a deliberate 503 or the
right refusal comes back, if `/health`, asked every 20 ms, is slower than 50 ms at p99, or if slots
or cache are still in use at the end. Everything stays on 127.0.0.1 and is bounded in number and
time.
"""

import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.aftermath import left_behind
from benchmarks.machine import given, parser, save
from server.testing import ServerProcess
from telemetry.machine import describe

HEALTH_P99 = 0.05  # seconds
_DESCRIPTORS = 8192  # open files that are asked for, for us and the server
_SPARE = 512  # of them, for everything but the flood
_LONGEST = 1800  # seconds, if even the load generator hangs


def attack(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """What the load and the probe saw, and `faults`: one line for each thing that went wrong."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.health_probe", str(server.port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as probe:  # fmt: skip
        try:
            load = subprocess.run(
                [sys.executable, "-m", "benchmarks.abuse_load", *_load_options(server, options)],
                stdout=subprocess.PIPE, check=True, timeout=_LONGEST,
            )  # fmt: skip
        finally:
            samples = json.loads(probe.communicate()[0])  # it ends, as its input does
    found: dict[str, Any] = json.loads(load.stdout)
    begun, abused, ended = found.pop("begun"), found.pop("abused"), found.pop("ended")
    found["seconds"] = ended - abused
    found["health"] = {
        "calm": _latencies([s for s in samples if begun <= s[0] < abused]),
        "abused": _latencies([s for s in samples if abused <= s[0] < ended]),
    }
    found["faults"] = [*_faults(found), *left_behind(server)]
    return found


def _load_options(server: ServerProcess, options: argparse.Namespace) -> list[str]:
    flood = min(options.flood, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE)
    values = {
        "port": server.port, "requests": options.requests, "rate": options.rate, "flood": flood,
        "clients": options.clients, "calm": options.calm, "seed": options.seed,
    }  # fmt: skip
    made = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return [*made, "--no-slow"] if options.no_slow else made


def _latencies(samples: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """Milliseconds, and how often the answer was not 200."""
    taken = np.array([seconds for _, seconds, _ in samples] or [0.0]) * 1e3
    return {
        "asked": len(samples),
        "failed": sum(status != 200 for *_, status in samples),
        "p50_ms": float(np.percentile(taken, 50)),
        "p99_ms": float(np.percentile(taken, 99)),
        "max_ms": float(taken.max()),
    }


def _faults(found: dict[str, Any]) -> list[str]:
    good, health = found["good"], found["health"]["abused"]
    faults = [f"{k['kind']}: {', '.join(k['wrong'])}" for k in found["kinds"] if k["wrong"]]
    faults += [f"good answer lost: {line[:200]}" for line in good["lost"]]
    faults += [f"good answer changed: {line[:400]}" for line in good["changed"]]
    if not good["answered"]:
        faults.append("no good answer at all")
    if health["failed"]:
        faults.append(f"/health failed {health['failed']} times")
    return faults


def _table(found: dict[str, Any]) -> Table:
    table = Table(title="What came and what was answered")
    for title in ("kind", "sent", "seen", "verdict"):
        table.add_column(title)
    for kind in sorted(found["kinds"], key=lambda k: str(k["kind"])):
        seen = ", ".join(f"{name} {count}" for name, count in sorted(kind["seen"].items()))
        verdict = f"[red]not {', '.join(kind['wrong'])}[/red]" if kind["wrong"] else "right"
        table.add_row(kind["kind"], str(kind["sent"]), seen, verdict)
    return table


def add_options(options: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    options.add_argument("--requests", type=int, default=500, help="hostile ones, of all kinds")
    options.add_argument("--rate", type=float, default=12.0, help="of them a second")
    options.add_argument("--flood", type=int, default=1000, help="idle connections in a flood")
    options.add_argument("--clients", type=int, default=4, help="good ones")
    options.add_argument("--calm", type=float, default=5.0, help="seconds without abuse before")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--no-slow", action="store_true", help="leave out slow connections")


def main() -> int:
    """Runs the benchmark; the exit code says whether the server bore it."""
    options = parser(__doc__)
    add_options(options)
    options.add_argument("--tiny", action="store_true", help="a tiny random model, for a quick try")
    arguments = options.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        model = _tiny(Path(folder)) if arguments.tiny else ()
        server = ServerProcess(*model, log=Path(folder) / "server.log").wait(300)
        try:
            found = attack(server, arguments)
        finally:
            server.stop()
    console.print(describe())
    console.print(_table(found))
    good, health = found["good"], found["health"]
    console.print(
        f"good answers: {good['answered']}, lost {len(good['lost'])}, changed "
        f"{len(good['changed'])}, put off by 503 {good['put_off']}"
    )
    for phase, seen in health.items():
        console.print(
            f"/health {phase}: p50 {seen['p50_ms']:.1f} ms, p99 {seen['p99_ms']:.1f}, "
            f"max {seen['max_ms']:.1f}, {seen['asked']} asked, {seen['failed']} failed"
        )
    if health["abused"]["p99_ms"] >= 1e3 * HEALTH_P99:
        found["faults"].append(f"/health p99 is not under {1e3 * HEALTH_P99:.0f} ms")
    for fault in found["faults"]:
        console.print(f"FAULT {fault}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(found['kinds'])} kinds, {len(found['faults'])} faults")
    result = {"machine": describe(), "arguments": given(arguments), **found}
    console.print(f"written to {save('abuse', result, arguments.json)}")
    return 1 if found["faults"] else 0


def _tiny(folder: Path) -> tuple[str, str]:
    tiny = importlib.import_module("tests.support.tiny")
    return "--model", str(tiny.save_tiny(folder / "tiny-llama"))


if __name__ == "__main__":
    sys.exit(main())
