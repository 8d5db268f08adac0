"""Eight streams over HTTP beside `llama-server`: `python -m benchmarks.streams --llama-cpp FOLDER`.

The same client sends the same prompts to one server after the other, each alone on the machine, in
turn; tokens a second over all streams, prompts included.
"""

import asyncio
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import aiohttp
import httpx
from rich.console import Console

from benchmarks.support.peers import ggufs
from benchmarks.support.results import option_parser, save_result, spread
from server.testing import ServerProcess
from telemetry.machine import describe

STREAMS, PROMPT, OUTPUT = 8, 100, 64


async def _stream(client: aiohttp.ClientSession, url: str, body: dict[str, object]) -> int:
    tokens = 0
    async with client.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            tokens += line.startswith(b'data: {"') and b'"choices":[]' not in line
    return tokens


def _prompt(number: int) -> list[int]:
    return [(37 * i + 911 * number) % 40_000 + 300 for i in range(PROMPT)]


async def _round(url: str, turn: int) -> float:
    """Tokens a second of all streams together; every prompt is new, so no cache helps."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(600)) as client:
        bodies = [
            {
                "prompt": _prompt(STREAMS * turn + stream),
                "max_tokens": OUTPUT, "temperature": 0, "ignore_eos": True, "stream": True,
                "trimtab": {"variant": "base"},
            }
            for stream in range(STREAMS)
        ]  # fmt: skip
        started = time.perf_counter()
        await asyncio.gather(*(_stream(client, url, body) for body in bodies))
        return STREAMS * OUTPUT / (time.perf_counter() - started)


@contextmanager
def trimtab(log: Path) -> Iterator[str]:
    """Our server."""
    server = ServerProcess(log=log).wait()
    try:
        yield server.url
    finally:
        server.stop()


@contextmanager
def llama_server(folder: Path, gguf: Path, slots: int, threads: int, log: Path) -> Iterator[str]:
    """llama.cpp's, which writes `slots` answers at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(folder / "llama-server"), "-m", str(gguf), "-np", str(slots), "-t", str(threads),
        "-c", str(slots * 512), "--port", str(port),
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Runs the benchmark and prints its figures."""
    options = option_parser(__doc__)
    options.add_argument("--llama-cpp", type=Path)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args()
    found: dict[str, list[float]] = {}
    turn = 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        for _ in range(arguments.repeats):
            servers = {"trimtab": trimtab(log)}
            if arguments.llama_cpp is not None:
                for name, gguf in ggufs(arguments.llama_cpp).items():
                    servers[f"llama-server {name}"] = llama_server(
                        arguments.llama_cpp, gguf, STREAMS, arguments.threads, log
                    )
            for name, server in servers.items():
                with server as url:
                    asyncio.run(_round(url, turn))  # warms
                    found.setdefault(name, []).append(asyncio.run(_round(url, turn + 1)))
            turn += 2
    console = Console(width=120)
    console.print(describe())
    speed = {name: median(values) for name, values in found.items()}
    for name, values in found.items():
        console.print(
            f"{name}: {speed[name]:.0f} tokens/s ±{spread(values):.0%}, "
            f"trimtab {speed['trimtab'] / speed[name]:.2f}x"
        )
    result = {
        "machine": describe(),
        "streams": STREAMS, "prompt": PROMPT, "output": OUTPUT,
        "tokens_per_second": speed,
        "spread": {name: spread(values) for name, values in found.items()},
    }  # fmt: skip
    console.print(f"written to {save_result('streams', result, arguments.json)}")


if __name__ == "__main__":
    main()
