"""A program of the operating system that is asked now and then, without waiting for it."""

import subprocess
import time
from collections.abc import Sequence

_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # Windows would show one
_MAX_SECONDS = 20.0  # for which a program may run


class SystemTool:
    """Runs a program every `period_seconds`, and keeps what it wrote last.

    A program that cannot be started is not tried again. One that fails has no output until it
    succeeds. Used by one thread.
    """

    def __init__(self, command: Sequence[str], period_seconds: float) -> None:
        self._command: list[str] | None = list(command)
        self._period = period_seconds
        self._process: subprocess.Popen[str] | None = None
        self._started = -period_seconds
        self._output: str | None = None

    def output(self) -> str | None:
        """Return what the program wrote in its last run, or None. Start a run if it is time."""
        now = time.monotonic()
        if self._process is not None:
            self._collect(now)
        if self._process is None and now - self._started >= self._period:
            self._start(now)
        return self._output

    def _start(self, now: float) -> None:
        if self._command is None:
            return
        self._started = now
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                creationflags=_NO_WINDOW,
            )
        except OSError:
            self._command = self._output = None

    def _collect(self, now: float) -> None:
        """Take the output of a run that has ended; end one that takes too long."""
        assert self._process is not None
        if self._process.poll() is None:
            if now - self._started < _MAX_SECONDS:
                return
            self._process.kill()
        output, _ = self._process.communicate()
        self._output = output if self._process.returncode == 0 else None
        self._process = None
