"""From the start of a server to its first answer, and its memory: `python -m benchmarks.startup`.

Our server with a warm and with a cold cache and, with `--llama-server PATH`, llama.cpp's on the
same GGUF file, in turn. An answer is one token of a short prompt over HTTP.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.support.peers import ggufs
from benchmarks.support.results import option_parser, options_as_json, save_result, spread
from server.engine.backends.native.library import NativeEngine, is_available
from server.engine.loading.source import DEFAULT_MODEL, cache_folder
from telemetry.machine import describe

_REQUEST = json.dumps({"prompt": "The capital of France is", "max_tokens": 1}).encode()
_POLL_SECONDS = 0.01
_MAX_SECONDS = 1800.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy


@dataclass(frozen=True, slots=True)
class Start:
    """How one start went: seconds until anything was answered, and until a token was; peak bytes.

    `peak_bytes` is the most memory that the process had resident up to its first answer.
    """

    listening_seconds: float
    answer_seconds: float
    peak_bytes: int


@dataclass(slots=True)
class Contender:
    """A server: its command without the port, and variables beside those of this process.

    With `cold` its cache is emptied before each start.
    """

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    cold: Path | None = None
    starts: list[Start] = field(default_factory=list)

    def start(self, log: Path) -> None:
        """Start the server once, ask for a token, and end it."""
        if self.cold is not None:
            _empty(self.cold)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with log.open("wb") as out:
            began = time.perf_counter()
            process = subprocess.Popen(
                [*self.command, "--port", str(port)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
            )
        try:
            self.starts.append(_first_answer(process, port, began, log))
        finally:
            process.terminate()
            process.wait(30)


def _empty(folder: Path) -> None:
    """Remove all but the links from a folder of caches."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def _first_answer(process: "subprocess.Popen[bytes]", port: int, began: float, log: Path) -> Start:
    """Ask until a token comes. Raises `RuntimeError` with the log if the server ends before."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", _REQUEST, {"Content-Type": "application/json"}
    )
    listening = None
    while time.perf_counter() - began < _MAX_SECONDS and process.poll() is None:
        try:
            with _DIRECT.open(request, timeout=_MAX_SECONDS) as response:
                response.read()
        except urllib.error.HTTPError:
            listening = listening or time.perf_counter() - began
        except OSError:
            pass
        else:
            seconds = time.perf_counter() - began
            return Start(listening or seconds, seconds, _peak_bytes(process.pid))
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"no answer:\n{log.read_text(errors='replace')}")


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("the system does not tell how much memory a process had")


def contenders(arguments: argparse.Namespace, folder: Path) -> list[Contender]:
    """Return the servers that the options ask for. `folder` takes the cold caches."""
    size = str(arguments.context)
    ours = [
        sys.executable, "-m", "server.cli", "serve", "--model", arguments.model,
        "--context", size, "--kv-tokens", size, "--threads", str(arguments.threads),
    ]  # fmt: skip
    cold = folder / "cache"
    cold.mkdir()
    if arguments.model == DEFAULT_MODEL:  # what is fetched stays
        (cold / "models").symlink_to(cache_folder() / "models")
    found = [
        Contender("trimtab, warm cache", ours),
        Contender("trimtab, cold cache", ours, {"TRIMTAB_CACHE": str(cold)}, cold),
    ]
    if arguments.llama_server is not None:
        gguf = arguments.gguf or (
            ggufs(None)["Q4_1"] if arguments.model == DEFAULT_MODEL else Path(arguments.model)
        )
        command = [str(arguments.llama_server), "-m", str(gguf), "-c", size, "-np", "1"]
        found.append(Contender("llama-server", [*command, "-t", str(arguments.threads)]))
    return found


def summary(contender: Contender) -> dict[str, Any]:
    """Return the medians of a server's starts, and all of them."""
    starts = contender.starts
    answers = [one.answer_seconds for one in starts]
    return {
        "listening_seconds": median(one.listening_seconds for one in starts),
        "answer_seconds": median(answers),
        "spread": spread(answers),
        "peak_bytes": median(one.peak_bytes for one in starts),
        "answers": answers,
    }


def run(servers: list[Contender], starts: int, log: Path) -> dict[str, dict[str, Any]]:
    """Start the servers in turn, each once more than `starts`: the first time warms caches."""
    for turn in range(starts + 1):
        for server in servers:
            server.start(log)
            if not turn:
                server.starts.clear()
    return {server.name: summary(server) for server in servers}


def main() -> None:
    """Measures and prints."""
    options = option_parser(__doc__)
    options.add_argument("--model", default=DEFAULT_MODEL)
    options.add_argument("--llama-server", type=Path, help="the program")
    options.add_argument("--gguf", type=Path, help="its file, unless the model is one")
    options.add_argument("--context", type=int, default=4096, help="tokens, for both")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--starts", type=int, default=5)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        servers = contenders(arguments, folder)
        found = run(servers, arguments.starts, folder / "server.log")
    isa = NativeEngine(1).isa if is_available() else "none"
    machine = describe()
    print(f"{machine['processor']}, instruction set {isa}, {arguments.threads} threads")
    for label, row in found.items():
        print(
            f"{label}: {row['answer_seconds']:.2f} s ±{row['spread']:.0%} to the first answer, "
            f"listening after {row['listening_seconds']:.2f} s, "
            f"at most {row['peak_bytes'] / 1e9:.2f} GB"
        )
    result = {
        "machine": machine,
        "instruction_set": isa,
        "options": options_as_json(arguments),
        "servers": found,
    }
    path = save_result("startup", result, arguments.json)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
