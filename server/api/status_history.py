"""The last two minutes of a server, a sample a second: what the page's charts begin with."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from math import exp
from statistics import fmean
from typing import Any

from controller.engine_status import EngineStatus
from telemetry import Snapshot

PERIOD_SECONDS = 1.0
_SAMPLES = 120
_QUALITY_SECONDS = 10.0
FIELDS = ("time", "cpu", "memory", "running", "waiting", "quality")
Sample = tuple[float | None, ...]


class StatusHistory:
    """Keeps samples of the host, the queue and the quality. All of it runs in the event loop.

    `engine` and `snapshot` return the present state, `recent` holds the latest answers.
    """

    def __init__(
        self,
        engine: Callable[[], EngineStatus],
        snapshot: Callable[[], Snapshot],
        recent: Iterable[Mapping[str, Any]],
    ) -> None:
        self._engine = engine
        self._snapshot = snapshot
        self._recent = recent
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._task: asyncio.Task[None] | None = None

    def sample(self) -> Sample:
        """Return the present values of `FIELDS`; None is what there is no reading of.

        `time` is in seconds since 1970, `cpu` and `memory` are shares in use, `quality` is what
        `kept_quality` says.
        """
        host, load, now = self._snapshot(), self._engine(), time.time()
        total, free = host.memory_total_bytes.value, host.memory_available_bytes.value
        memory = 1 - free / total if total and free is not None else None
        cpu = host.cpu_utilization_ratio.value
        return now, cpu, memory, load.running, load.waiting, kept_quality(self._recent, now)

    def to_json(self) -> dict[str, object]:
        """Return all samples, the oldest first."""
        return {"period_seconds": PERIOD_SECONDS, "fields": FIELDS, "samples": list(self._samples)}

    def start(self) -> None:
        """Take samples from now on, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Take no more samples."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            self._samples.append(self.sample())
            await asyncio.sleep(PERIOD_SECONDS)


def kept_quality(recent: Iterable[Mapping[str, Any]], now: float) -> float | None:
    """Return the mean of exp(-predicted loss) of the answers that ended in the last ten seconds.

    `recent` are answers as the request log keeps them, the newest first. Refused requests and
    answers of unmeasured loss do not count; None where no answer is left.
    """
    kept = []
    for answer in recent:
        if now - answer["time"] > _QUALITY_SECONDS:
            break
        if answer["finish_reason"] != "refused" and answer["predicted_loss"] is not None:
            kept.append(exp(-answer["predicted_loss"]))
    return fmean(kept) if kept else None
