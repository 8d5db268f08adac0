"""A real server process for benchmarks and tests: started as a user would, stopped at the end."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from server.settings import ELSEWHERE, PREFIX


class ServerProcess:
    """`trimtab serve` on a free port."""

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
                env={**_environment(), **environment},
            )

    def wait(self, seconds: float = 120) -> "ServerProcess":
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{self.log()}")
            try:
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.1)
        self.process.kill()
        raise RuntimeError(f"the server did not start:\n{self.log()}")

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        """The exit code. A server that does not end is killed; raises `TimeoutExpired` then."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def idle(self, seconds: float = 10) -> dict[str, float]:
        """Waits until nothing runs and the cache is empty; returns the metrics."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.metrics()
            busy = found["trimtab_requests_running"] + found["trimtab_requests_waiting"]
            if not busy and not found["trimtab_kv_cache_usage_ratio"]:
                return found
            assert time.monotonic() < deadline, "a slot leaked"
            time.sleep(0.05)

    def metrics(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics").text
        pairs = re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in pairs}


def _environment() -> dict[str, str]:
    """This process's, without settings: a server under test has those that it is given."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(PREFIX) or name in ELSEWHERE
    }
