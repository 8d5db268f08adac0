"""Attack a server with the hostile load, and judge what came of it."""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.support.leftovers import left_behind
from server.testing import ServerProcess

_SPARE = 512  # of them, for everything but the flood
_LONGEST = 1800  # seconds, if even the load generator hangs


def attack(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """What the load and the probe saw, and `faults`: one line for each thing that went wrong."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.abuse.health_probe", str(server.port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as probe:  # fmt: skip
        try:
            load = subprocess.run(
                [sys.executable, "-m", "benchmarks.abuse.load", *_load_options(server, options)],
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


def add_options(options: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    options.add_argument("--requests", type=int, default=500, help="hostile ones, of all kinds")
    options.add_argument("--rate", type=float, default=12.0, help="of them a second")
    options.add_argument("--flood", type=int, default=1000, help="idle connections in a flood")
    options.add_argument("--clients", type=int, default=4, help="good ones")
    options.add_argument("--calm", type=float, default=5.0, help="seconds without abuse before")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--no-slow", action="store_true", help="leave out slow connections")
