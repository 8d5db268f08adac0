"""Send the mixed load to a server, and judge what came of it."""

import argparse
import asyncio
import time
from typing import Any

import psutil

from benchmarks.soak.load import make_requests, send_all
from benchmarks.support.leftovers import left_behind
from server.testing import ServerProcess


def soak(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """What became of all requests, and `faults`: one line for each thing that went wrong."""
    process = psutil.Process(server.process.pid)
    memory: list[int] = []  # bytes, after each request

    def on_done() -> None:
        memory.append(process.memory_info().rss)

    work = make_requests(options.requests, options.longest, options.seed)
    started = time.monotonic()
    found = asyncio.run(send_all(server.url, work, options.at_once, on_done))
    seconds = time.monotonic() - started
    faults = list(found.faults)
    pairs, equal = found.twins
    if equal < pairs:
        faults.append(f"{pairs - equal} of {pairs} twins differ")
    if not pairs:
        faults.append("no twins were answered")
    faults += left_behind(server)
    warm, last = memory[len(memory) // 3], process.memory_info().rss
    return {
        "seconds": seconds,
        "outcomes": dict(found.outcomes),
        "prompt_tokens": [min(found.lengths, default=0), max(found.lengths, default=0)],
        "twins": pairs,
        "equal": equal,
        "curve": memory[:: max(1, len(memory) // 30)],
        "memory": {"warm": warm, "last": last, "most": max(memory), "growth": last - warm},
        "faults": faults,
    }


def add_options(options: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    options.add_argument("--requests", type=int, default=2000)
    options.add_argument("--at-once", type=int, default=64)
    options.add_argument("--longest", type=int, default=900, help="words in a prompt")
    options.add_argument("--seed", type=int, default=0)
