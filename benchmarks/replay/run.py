"""Send the same requests to a new server under each policy, at multiples of the base's capacity."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from rich.console import Console

from benchmarks.replay.comparison import Cell
from benchmarks.replay.open_loop import (
    SLOTS,
    Objective,
    ReplayRun,
    ScheduledRequest,
    TimedAnswer,
    measure_capacity,
    send_all,
)
from benchmarks.replay.servers import serving
from benchmarks.replay.trace import PROBED, probe_requests, window

STEADY = 0.2
"""A run is done again, once, if the base's speed changed by this share meanwhile."""


@dataclass(slots=True)
class Replay:
    """What to send and to whom. `probes` are the requests that each repeat's capacity was
    measured with."""

    requests: Sequence[ScheduledRequest]
    objective: Objective
    seconds: float
    llama_cpp: Path | None
    console: Console
    probes: list[list[ScheduledRequest]] = field(default_factory=list)

    def run(self, cells: Sequence[Cell], repeats: int) -> dict[Cell, list[ReplayRun]]:
        """Run every cell in turn, `repeats` times, beside a server that measures the capacity."""
        runs: dict[Cell, list[ReplayRun]] = {cell: [] for cell in cells}
        never = Objective(1e4, 1e4, 1e4)
        with (
            tempfile.TemporaryDirectory() as folder,
            serving("static:base", never, None, Path(folder) / "base.log") as base,
        ):
            turns = count()
            for repeat in range(repeats):
                first = 200 + 700 * repeat
                like = self.requests[first : first + 8 * PROBED]  # about as many as will be sent

                def capacity(like: Sequence[ScheduledRequest] = like) -> float:
                    probe = probe_requests(like, next(turns))
                    return asyncio.run(measure_capacity(base, probe, SLOTS))

                self.probes.append(probe_requests(like, 0))
                capacity()  # warms the server
                before = capacity()
                for cell in cells:
                    for again in (False, True):
                        answers = self._send(cell, first, before, Path(folder) / "server.log")
                        began, before = before, capacity()
                        self._report(cell, answers, (began, before))
                        if again or abs(before / began - 1) < STEADY:
                            break
                    runs[cell].append(ReplayRun(answers, (began + before) / 2))
        return runs

    def _send(self, cell: Cell, first: int, capacity: float, log: Path) -> list[TimedAnswer]:
        load, policy = cell
        part = window(self.requests, first, self.seconds, capacity * load)
        with serving(policy, self.objective, self.llama_cpp, log) as url:
            return asyncio.run(send_all(url, part))

    def _report(
        self, cell: Cell, answers: Sequence[TimedAnswer], capacities: tuple[float, float]
    ) -> None:
        load, policy = cell
        good = sum(map(self.objective.met, answers)) / len(answers)
        before, after = capacities
        self.console.print(
            f"{load:g}x {policy}: {good:.2f} of {len(answers)} in time; the base answers "
            f"{before:.2f} and {after:.2f} requests/s to {SLOTS} busy clients"
        )
