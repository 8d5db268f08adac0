"""A long mixed load on a live server: `python -m benchmarks.soak`.

1,500 requests, 64 at once: a third is cancelled, a fifth invalid, prompts have 10 to 900 words of
about one token each, and half of the good requests are one of two twins. It fails (exit code 1) if
a request that was accepted and not cancelled does not complete, if twins differ, if an invalid
request is not refused with 400, if slots or cache are still in use at the end, or if the server's
memory grows by 20 MB or more after the first third.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from rich.console import Console
from rich.table import Table

from benchmarks.aftermath import left_behind
from benchmarks.machine import given, parser, save
from benchmarks.soak_load import jobs, send
from server.testing import ServerProcess
from telemetry.machine import describe

GROWTH = 20e6  # bytes after the warm-up that are too much


def soak(server: ServerProcess, options: argparse.Namespace) -> dict[str, Any]:
    """What became of all requests, and `faults`: one line for each thing that went wrong."""
    process = psutil.Process(server.process.pid)
    memory: list[int] = []  # bytes, after each request

    def on_done() -> None:
        memory.append(process.memory_info().rss)

    work = jobs(options.requests, options.longest, options.seed)
    started = time.monotonic()
    found = asyncio.run(send(server.url, work, options.at_once, on_done))
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
    options.add_argument("--requests", type=int, default=1500)
    options.add_argument("--at-once", type=int, default=64)
    options.add_argument("--longest", type=int, default=900, help="words in a prompt")
    options.add_argument("--seed", type=int, default=0)


def main() -> int:
    """Runs the soak; the exit code says whether all went well."""
    options = parser(__doc__)
    add_options(options)
    options.add_argument("--model", help="another model than the default one")
    # Small enough for the warm-up to touch all of it, which is no growth.
    options.add_argument("--kv-tokens", type=int, default=32_768, help="the server's cache")
    arguments = options.parse_args()
    console = Console(width=120)
    chosen = ("--model", arguments.model) if arguments.model else ()
    with tempfile.TemporaryDirectory() as folder:
        cache = {"TRIMTAB_KV_TOKENS": str(arguments.kv_tokens)}
        server = ServerProcess(*chosen, log=Path(folder) / "server.log", **cache).wait(300)
        try:
            found = soak(server, arguments)
        finally:
            server.stop()
    table = Table(title="What became of the requests")
    for title in ("kind", "outcome", "requests"):
        table.add_column(title)
    for name, count in sorted(found["outcomes"].items()):
        table.add_row(*name.split(": "), str(count))
    console.print(describe())
    console.print(table)
    memory = {name: value / 1e6 for name, value in found["memory"].items()}
    console.print(
        f"{found['seconds']:.0f} s; prompts of {found['prompt_tokens'][0]} to "
        f"{found['prompt_tokens'][1]} tokens; {found['equal']} of {found['twins']} twins equal"
    )
    console.print(
        f"memory: {memory['warm']:.0f} MB warm, {memory['most']:.0f} at most, "
        f"{memory['last']:.0f} in the end"
    )
    if found["memory"]["growth"] >= GROWTH:
        found["faults"].append(f"memory grew by {memory['growth']:.0f} MB after the warm-up")
    for fault in found["faults"]:
        console.print(f"FAULT {fault}", markup=False, highlight=False, soft_wrap=True)
    result = {"machine": describe(), "arguments": given(arguments), **found}
    console.print(f"written to {save('soak', result, arguments.json)}")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
