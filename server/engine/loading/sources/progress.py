"""Says how a download goes: a bar on a terminal, else a line in the log every ten seconds.

While a server starts, it is a stage of the start, so that `/health` says it, too.
"""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from pruners.support.sizes import size_text
from server.engine.loading.stages import advance, stage

log = logging.getLogger(__name__)

_LOG_SECONDS = 10.0


class TransferProgress:
    """The progress of a download of `total` bytes, which `what` names. A context manager."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._started = self._said = time.monotonic()
        self._began_at = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(what, total=total)
        self._stage = stage("download")

    def __enter__(self) -> Self:
        self._stage.__enter__()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._stage.__exit__(kind, error, at)

    def found(self, count: int) -> None:
        """Count bytes that are there from before, or drop them if `count` is negative."""
        self._began_at += count
        self._move(count)

    def received(self, count: int) -> None:
        """Count bytes that have come from the network."""
        self._move(count)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= _LOG_SECONDS:
            self._said = now
            rate = max(1.0, (self._done - self._began_at) / (now - self._started))
            log.info(
                "%s: %d %% of %s, %s/s, %.0f s left",
                self._what,
                100 * self._done // max(1, self._total),
                size_text(self._total),
                size_text(rate),
                (self._total - self._done) / rate,
            )

    def _move(self, count: int) -> None:
        self._done += count
        self._bar.update(self._task, completed=self._done)
        advance(self._done / max(1, self._total))
