"""What the HTTP front end costs: `python -m benchmarks.front_end`.

Eight answers are written at once, by the engine alone in this process, and by a server over HTTP
as streams of completions and of chats, in turn and with the same model and settings. The speed is
that of writing: from the moment when all answers have begun to the last one's end. The client
only counts bytes, since it shares the processor with the server. In a last round `/metrics` is
read while the server writes.
"""

import argparse
import http.client
import json
import selectors
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console

from benchmarks.support.results import (
    option_parser,
    options_as_json,
    save_result,
    spread,
)
from pruners.variant import BASE
from server.engine.config import ModelConfig
from server.engine.loading.configured_model import load_configured_model
from server.engine.offline import answer_all
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest, Sequence
from server.settings import Settings
from server.testing import ServerProcess
from telemetry.machine import describe

STREAMS = 8
_ENGINE, _COMPLETIONS, _CHATS = "engine alone", "completions", "chats"
_LOOP, _SCRAPES = "event loop", "scrapes"  # in seconds a token, and seconds
_PATHS = {_COMPLETIONS: "/v1/completions", _CHATS: "/v1/chat/completions"}
_SETTINGS = {"kv_tokens": 16_384, "speculate": False}
_SCRAPE_SECONDS = 0.1  # between two of them


@dataclass(slots=True)
class Pace:
    """How fast answers came: `began` and `ended` in seconds, and the `tokens` between them."""

    began: float
    ended: float
    tokens: int

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / (self.ended - self.began)


class EngineAlone:
    """The engine in this process."""

    def __init__(self, model: str | None) -> None:
        settings = Settings(**({"model": model} if model else {}), **_SETTINGS)  # type: ignore[arg-type]
        self._model = load_configured_model(ModelConfig(settings.model))
        self._runner = build_runner(self._model, settings.to_engine_config(), None)

    def write(self, tokens: int, turn: int) -> Pace:
        """Write eight answers of some tokens."""
        began, before = 0.0, 0

        def on_step(sequences: list[Sequence]) -> None:
            nonlocal began, before
            if not began and all(sequence.output for sequence in sequences):
                began = time.perf_counter()
                before = sum(len(sequence.output) for sequence in sequences)

        tokenizer = self._model.tokenizer
        requests = [
            GenerationRequest(
                str(stream), tuple(tokenizer.encode(_text(turn * STREAMS + stream))), tokens,
                self._model.variants[BASE], sampling=SamplingParams(temperature=0),
            )
            for stream in range(STREAMS)
        ]  # fmt: skip
        answer_all(self._runner, tokenizer, requests, on_step)
        return Pace(began, time.perf_counter(), STREAMS * tokens - before)


def _text(number: int) -> str:
    """Return a prompt that no other number has, which is answered in words."""
    return f"{number} is a number. Write a long story of a river, a mountain and an old city."


def _body(kind: str, number: int, tokens: int) -> dict[str, object]:
    asked: dict[str, object] = {"prompt": _text(number)}
    if kind == _CHATS:
        asked = {"messages": [{"role": "user", "content": _text(number)}]}
    return {
        **asked,
        "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "trimtab": {"variant": BASE},
    }  # fmt: skip


def write_over_http(port: int, kind: str, tokens: int, turn: int) -> Pace:
    """Let a server write eight answers as streams. Raises `RuntimeError` for any other answer."""
    began, before, open_streams = 0.0, 0, STREAMS
    events = dict.fromkeys(range(STREAMS), 0)
    with selectors.DefaultSelector() as ready:
        for stream in range(STREAMS):
            sent = _send(port, _PATHS[kind], _body(kind, turn * STREAMS + stream, tokens))
            ready.register(sent, selectors.EVENT_READ, stream)
        while open_streams:
            for key, _ in ready.select():
                connection: socket.socket = key.fileobj  # type: ignore[assignment]
                data = connection.recv(1 << 16)
                if b" 200 " not in data and not events[key.data]:
                    raise RuntimeError(data.decode(errors="replace")[:500])
                events[key.data] += data.count(b"data: ") + (b" 200 " in data)
                if not data:
                    ready.unregister(connection)
                    connection.close()
                    open_streams -= 1
            if not began and all(count > _BEFORE_TEXT[kind] for count in events.values()):
                began, before = time.perf_counter(), sum(events.values())
    before -= STREAMS * _BEFORE_TEXT[kind]
    return Pace(began, time.perf_counter(), STREAMS * tokens - before)


_BEFORE_TEXT = {_COMPLETIONS: 1, _CHATS: 2}
"""What comes before the first token of a stream: the headers, and a chat's first event."""


def _send(port: int, path: str, body: dict[str, object]) -> socket.socket:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.encode() + data)
    return connection


@contextmanager
def _server(model: str | None, log: Path) -> Iterator[ServerProcess]:
    chosen = ("--model", model) if model else ()
    server = ServerProcess(
        *chosen, log=log, TRIMTAB_SHADOW_SHARE="0",
        TRIMTAB_KV_TOKENS=str(_SETTINGS["kv_tokens"]), TRIMTAB_SPECULATE="0",
    )  # fmt: skip
    try:
        yield server.wait(300)
    finally:
        server.stop()


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return tokens a second of each repeat by what wrote, and the seconds of loop and scrapes."""
    found: dict[str, list[float]] = {_ENGINE: [], _COMPLETIONS: [], _CHATS: [], _LOOP: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        _server(arguments.model, Path(folder) / "server.log") as server,
    ):
        alone, tokens = EngineAlone(arguments.model), arguments.tokens
        for turn in range(-1, arguments.repeats):  # the first one warms
            paces = {_ENGINE: alone.write(tokens, turn + 1)}
            busy = _loop_seconds(server)
            for kind in _PATHS:
                paces[kind] = write_over_http(server.port, kind, tokens, turn + 1)
            busy = _loop_seconds(server) - busy
            if turn >= 0:
                for name, pace in paces.items():
                    found[name].append(pace.speed)
                found[_LOOP].append(busy / (len(_PATHS) * STREAMS * tokens))
        found[_SCRAPES] = _scrapes(server, tokens, arguments.repeats + 1)
    return found


def _loop_seconds(server: ServerProcess) -> float:
    """Return the processor time of the thread that runs the server's event loop, the first."""
    process = psutil.Process(server.process.pid)
    times = next(thread for thread in process.threads() if thread.id == process.pid)
    return float(times.user_time + times.system_time)


def _scrapes(server: ServerProcess, tokens: int, turn: int) -> list[float]:
    """Return the seconds of each scrape while eight streams are written."""
    seconds: list[float] = []
    connections = [
        _send(server.port, "/v1/completions", _body(_COMPLETIONS, turn * STREAMS + stream, tokens))
        for stream in range(STREAMS)
    ]
    scraper = http.client.HTTPConnection("127.0.0.1", server.port)
    text = b""
    while not seconds or b"\ntrimtab_requests_running 0.0" not in text:
        started = time.perf_counter()
        scraper.request("GET", "/metrics")
        text = scraper.getresponse().read()
        seconds.append(time.perf_counter() - started)
        time.sleep(_SCRAPE_SECONDS)
    for connection in connections:
        connection.close()
    return seconds


def costs(found: dict[str, list[float]]) -> dict[str, float]:
    """Return the share of the engine's speed that each way over HTTP costs: medians of rounds."""
    return {
        kind: median(
            1 - over / alone for alone, over in zip(found[_ENGINE], found[kind], strict=True)
        )
        for kind in _PATHS
    }


def main() -> None:
    """Run the benchmark and print its figures."""
    options = option_parser(__doc__)
    options.add_argument("--model", help="another model than the default one")
    options.add_argument("--tokens", type=int, default=256, help="of each answer")
    options.add_argument("--repeats", type=int, default=7)
    arguments = options.parse_args()
    found = measure(arguments)
    scrapes, loop = sorted(found.pop(_SCRAPES)), median(found.pop(_LOOP))
    cost = costs(found)
    console = Console(width=120)
    console.print(describe())
    for name, speeds in found.items():
        told = "" if name == _ENGINE else f", costs {cost[name]:.1%}"
        console.print(f"{name}: {median(speeds):.0f} tokens/s ±{spread(speeds):.1%}{told}")
    console.print(f"the event loop takes {1e6 * loop:.0f} us of processor time for each token")
    console.print(
        f"{len(scrapes)} scrapes of /metrics meanwhile: {1e3 * median(scrapes):.1f} ms, "
        f"{1e3 * scrapes[-1]:.1f} ms at most"
    )
    result = {
        "machine": describe(),
        "arguments": options_as_json(arguments),
        "tokens_per_second": {name: median(speeds) for name, speeds in found.items()},
        "spread": {name: spread(speeds) for name, speeds in found.items()},
        "cost": cost,
        "event_loop_us_per_token": 1e6 * loop,
        "scrape_ms": {"median": 1e3 * median(scrapes), "most": 1e3 * scrapes[-1]},
    }
    console.print(f"written to {save_result('front-end', result, arguments.json)}")


if __name__ == "__main__":
    main()
