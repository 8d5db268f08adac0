"""Run `trimtab serve` as a process of its own, as a user would: for tests and benchmarks."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from server.settings import PREFIX
from server.settings_sources import VARIABLES_READ_ELSEWHERE

LEARN = f"{PREFIX}LEARN"
"""The variable that says when a server learns."""


class ServerProcess:
    """A server on a free port of 127.0.0.1: `url` is its address, `process` the running command.

    `arguments` are options of `trimtab serve`, `environment` holds further variables, and `log` is
    the file that takes what the server prints. It learns nothing unless `environment` says so.
    """

    def __init__(self, *arguments: str, log: Path, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        command = [sys.executable, "-m", "server.cli", "serve", "--port", str(self.port)]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**_environment_without_settings(), LEARN: "off", **environment},
            )

    def wait(self, seconds: float = 120) -> "ServerProcess":
        """Wait until `/health` answers 200, and return this server.

        Raises `RuntimeError` with the log if the server ends, or is not ready in time.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.log()}")
            try:
                self._read("/health", timeout=2)
            except OSError:  # also URLError: nobody listens yet, or the answer was not 200
                time.sleep(0.1)
            else:
                return self
        self.process.kill()
        raise RuntimeError(f"the server did not start:\n{self.log()}")

    def log(self) -> str:
        """Return what the server has printed so far."""
        return self._log.read_text()

    def stop(self) -> int:
        """End the server in good order, and return its exit code.

        Raises `subprocess.TimeoutExpired`, and kills the server, if it takes longer than 60 s.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def wait_until_idle(self, seconds: float = 10) -> dict[str, float]:
        """Wait until no request runs or waits and the KV cache is empty; return the metrics.

        Raises `AssertionError` if that does not happen in time: something was not freed.
        """
        deadline = time.monotonic() + seconds
        while True:
            metrics = self.metrics()
            busy = metrics["trimtab_requests_running"] + metrics["trimtab_requests_waiting"]
            if not busy and not metrics["trimtab_kv_cache_usage_ratio"]:
                return metrics
            assert time.monotonic() < deadline, "requests or cached tokens were not freed"
            time.sleep(0.05)

    def metrics(self) -> dict[str, float]:
        """Return the value of each line of `/metrics`, by name and labels as they stand there."""
        pairs = re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", self._read("/metrics"), re.MULTILINE)
        return {name: float(value) for name, value in pairs}

    def _read(self, path: str, timeout: float = 10) -> str:
        with _DIRECT.open(f"{self.url}{path}", timeout=timeout) as response:
            return str(response.read().decode())


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


def _environment_without_settings() -> dict[str, str]:
    """Return this process's environment without Trimtab's settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIX) or name in VARIABLES_READ_ELSEWHERE
    }
