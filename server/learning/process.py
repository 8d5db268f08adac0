"""The worker as the server sees it: a process that is started, stopped, continued and killed."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from server.learning.order import WorkerOrder

log = logging.getLogger(__name__)

Report = dict[str, Any]


class WorkerProcess:
    """A running worker. Its reports go to `on_report`, in a thread of their own.

    Any thread may call any method. What the worker prints beside them goes to the file `log_path`.
    """

    def __init__(
        self, order: WorkerOrder, log_path: Path, on_report: Callable[[Report], None]
    ) -> None:
        """Start it. Raises `OSError` if that is not possible."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "server.learning.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                # A group of its own: the signal of a terminal is for the server.
                process_group=0 if os.name == "posix" else None,
                text=True,
            )
        self._handle = psutil.Process(self._process.pid)
        self._lock = threading.Lock()  # of the line below
        self.paused = False
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already; its exit code tells
            self._process.stdin.write(order.to_line())
            self._process.stdin.flush()
        threading.Thread(
            target=self._read, args=(on_report,), name="learning-reports", daemon=True
        ).start()

    @property
    def exit_code(self) -> int | None:
        """Return how it ended, None while it lives."""
        return self._process.poll()

    def pause(self) -> bool:
        """Stop it at once, until `resume`. Return whether it ran."""
        with self._lock:
            if self.paused or self._process.returncode is not None:
                return False
            with contextlib.suppress(psutil.Error):
                self._handle.suspend()
            self.paused = True
            return True

    def resume(self) -> None:
        """Let it go on."""
        with self._lock:
            if self.paused:
                with contextlib.suppress(psutil.Error):
                    self._handle.resume()
                self.paused = False

    def kill(self) -> None:
        """End it, and wait until it is gone. What it has finished is on disk."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()

    def _read(self, on_report: Callable[[Report], None]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                report = json.loads(line)
            except ValueError:
                log.debug("the worker printed %r", line)
                continue
            if isinstance(report, dict):
                on_report(report)
