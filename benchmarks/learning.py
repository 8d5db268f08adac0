"""How soon a model without an artefact has one: `python -m benchmarks.learning`. And what it costs.

A server without an artefact is left alone, and the seconds from its start to each finished stage
are noted. Then, or with `--only-cost` at once, requests are sent: in turn while the worker learns,
and while it is held by this benchmark. Prints how long the worker runs on behind a request, and
what first tokens and whole requests take beside each other.
"""

import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from rich.console import Console

from benchmarks.support.answer_times import answer_times
from benchmarks.support.results import option_parser, save_result
from pruners.variant import BASE
from server.engine.loading.source import DEFAULT_MODEL, resolve_model
from server.testing import ServerProcess
from telemetry.machine import describe

_POLL_SECONDS = 0.5
_QUIET_SECONDS = 3.0  # after which the worker runs again
_PROMPT, _TOKENS = "Tell me a story about the sea. " * 12, 32


def learn(server: ServerProcess, started: float, until: str, console: Console) -> dict[str, float]:
    """Wait until the stage `until` is finished; return the seconds at which each one was."""
    found: dict[str, float] = {}
    while until not in found:
        learning = httpx.get(f"{server.url}/trimtab/status").json()["learning"]
        for stage in learning["done"]:
            if stage not in found:
                found[stage] = time.monotonic() - started
                console.print(f"{stage}: {found[stage]:.0f} s after the start")
        if learning["state"] in ("failed", "refused"):
            raise RuntimeError(learning["reason"])
        time.sleep(_POLL_SECONDS)
    return found


def worker_of(server: ServerProcess) -> Any:  # noqa: ANN401
    """Return the process that learns for a server, waiting for it."""
    while True:
        for child in psutil.Process(server.process.pid).children():
            if "server.learning.worker" in child.cmdline():
                return child
        time.sleep(0.1)


class StopWatch(threading.Thread):
    """Notes how long some thread of a process still ran after `started`."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self._folder = Path(f"/proc/{process}/task")
        self.started = time.perf_counter()
        self.stopped: float | None = None

    def run(self) -> None:
        """Look every millisecond, for a second at most."""
        while time.perf_counter() - self.started < 1:
            states = {
                s.read_text().rpartition(")")[2].split()[0] for s in self._folder.glob("*/stat")
            }
            if states == {"T"}:
                self.stopped = time.perf_counter() - self.started
                return
            time.sleep(0.001)


def cost(server: ServerProcess, count: int) -> dict[str, Any]:
    """Ask in turn while the worker learns and while it is held; return medians."""
    times: dict[str, list[tuple[float, float]]] = {"held": [], "learning": []}
    stops = []
    for index in range(2 * count):
        kind = ("held", "learning")[index % 2]
        worker = worker_of(server)
        if kind == "held":
            worker.suspend()
        time.sleep(_QUIET_SECONDS)
        watch = StopWatch(worker.pid)
        if kind == "learning":
            watch.start()
        times[kind].append(answer_times(server, f"{time.time()} {_PROMPT}", _TOKENS, BASE))
        if kind == "learning":
            watch.join()
            stops.append(1.0 if watch.stopped is None else watch.stopped)
        else:
            worker.resume()
    found: dict[str, Any] = {"stopped_ms": [1e3 * median(stops), 1e3 * max(stops)]}
    for place, what in enumerate(("first_token", "whole_request")):
        values = {kind: 1e3 * median(one[place] for one in some) for kind, some in times.items()}
        found[what] = {**values, "ratio": values["learning"] / values["held"]}
    return found


def main() -> None:
    """Measure and print."""
    options = option_parser(__doc__)
    options.add_argument("--until", default="depth", help="the last stage to wait for")
    options.add_argument("--requests", type=int, default=30, help="of each kind")
    options.add_argument("--only-cost", action="store_true", help="wait for no stage")
    options.add_argument("--threads", type=int, help="of server and worker")
    arguments = options.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as scratch:
        source = resolve_model(DEFAULT_MODEL)
        folder = Path(scratch) / f"unknown{source.suffix if source.is_file() else ''}"
        folder.symlink_to(source)  # no artefact comes with this name
        threads = {} if arguments.threads is None else {"TRIMTAB_THREADS": str(arguments.threads)}
        started = time.monotonic()
        server = ServerProcess(
            "--model", str(folder), log=Path(scratch) / "log", TRIMTAB_LEARN="idle",
            TRIMTAB_CACHE=f"{scratch}/cache", **threads,
        ).wait()  # fmt: skip
        try:
            result: dict[str, Any] = {"machine": describe(), "ready": time.monotonic() - started}
            if not arguments.only_cost:
                result["seconds"] = learn(server, started, arguments.until, console)
            if arguments.requests:
                result["cost"] = cost(server, arguments.requests)
                console.print(result["cost"])
        finally:
            server.stop()
    console.print(describe())
    console.print(f"written to {save_result('learning', result, arguments.json)}")


if __name__ == "__main__":
    main()
