"""Hostile connections for `benchmarks.abuse`: what is wrong is when bytes come, or do not come.

Each returns what it saw: a status, `cut` if the server closed without one, `left` if the client
went away as it meant to, `kept open` if the server kept a connection that it should have closed.
"""

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from benchmarks.abuse.cases import CHAT, COMPLETIONS, GENERATE, HOST, post, request
from benchmarks.abuse.requests import ASK

LOOPBACK = "127.0.0.1"
_PATIENCE = 45.0  # seconds in which a slow client must have been cut off
_LEFT = frozenset({"left", "cut"})
_LATE = frozenset({"408", "cut"})
_LONG = {"prompt": "Tell me a story.", "max_tokens": 200, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server listens, and how many idle connections a flood opens."""

    port: int
    flood: int
    chance: random.Random


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One kind of connection. `slow`: it may take as long as the server's patience does."""

    kind: str
    act: Callable[[Target], Awaitable[str]]
    expected: frozenset[str]
    slow: bool = False


@asynccontextmanager
async def connected(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is closed at the end without waiting for the other side."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(target: Target, payload: bytes, seconds: float = 60) -> tuple[str, bytes]:
    """Send a payload while the answer is read; what came of it, and the answer's body."""
    try:
        async with asyncio.timeout(seconds), connected(target.port) as (reader, writer):
            sending = asyncio.create_task(_send(target, writer, payload))
            try:
                return await answer(reader)
            finally:
                sending.cancel()
    except TimeoutError:
        return "kept open", b""
    except OSError:
        return "cut", b""


async def _send(target: Target, writer: asyncio.StreamWriter, payload: bytes) -> None:
    writer.write(payload.replace(HOST, f"{LOOPBACK}:{target.port}".encode(), 1))
    with suppress(OSError):
        await writer.drain()


async def answer(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """A response's status and body. `cut` if there is none."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100"):
            head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        return "cut", b""
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    length = fields.get(b"content-length")
    body = b""
    with suppress(OSError, asyncio.IncompleteReadError):
        body = await (reader.read() if length is None else reader.readexactly(int(length)))
    return head.split(b" ", 2)[1].decode(), body


def _streamed(**more: object) -> bytes:
    return post(COMPLETIONS, {**_LONG, "stream": True, **more})


async def _leave_after(target: Target, payload: bytes, events: int = 0) -> str:
    """Hang up after so many events of a stream, or a moment after everything was sent."""
    async with connected(target.port) as (reader, writer):
        await _send(target, writer, payload)
        if not events:
            await asyncio.sleep(target.chance.uniform(0, 0.3))
        for _ in range(events):
            with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await reader.readuntil(b"\n\n")
    return "left"


async def _drip(target: Target, first: bytes, piece: bytes, pause: float = 0.2) -> str:
    """Send a piece at a time until the server has had enough."""
    async with connected(target.port) as (reader, writer):
        await _send(target, writer, first)
        reading = asyncio.create_task(answer(reader))
        try:
            async with asyncio.timeout(_PATIENCE):
                while not reading.done():
                    await asyncio.wait({reading}, timeout=pause)
                    if not reading.done():
                        writer.write(piece)
            return (await reading)[0]
        except TimeoutError:
            reading.cancel()
            return "kept open"


async def _read_nothing(target: Target) -> str:
    """Ask for a long stream with a small window, and read none of it for some seconds."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (LOOPBACK, target.port))
    payload = _streamed(n=4, logprobs=20).replace(HOST, f"{LOOPBACK}:{target.port}".encode())
    with raw:
        await asyncio.get_running_loop().sock_sendall(raw, payload)
        await asyncio.sleep(6)
    return "left"


async def _read_slowly(target: Target) -> str:
    """Read a stream a few bytes at a time, and leave before its end."""
    async with connected(target.port) as (reader, writer):
        await _send(target, writer, _streamed())
        for _ in range(60):
            await reader.read(16)
            await asyncio.sleep(0.05)
    return "left"


async def _reset(target: Target, payload: bytes, pause: float = 0.2) -> str:
    """Send, and reset the connection: whatever was under way is lost to the client."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (LOOPBACK, target.port))
    with raw:
        made = payload.replace(HOST, f"{LOOPBACK}:{target.port}".encode())
        with suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(raw, made)
        await asyncio.sleep(pause)
    return "left"


def _pipelined(count: int) -> bytes:
    body = json.dumps(_LONG).encode()
    kept = {"Connection": "keep-alive", "Content-Type": "application/json"}
    return request("POST", COMPLETIONS, body, kept) * count


async def _pipeline(target: Target) -> str:
    """Twenty small requests at once in one connection: all are answered, in their order."""
    kept = request("GET", "/v1/models", headers={"Connection": "keep-alive"})
    async with connected(target.port) as (reader, writer):
        made = (kept * 20).replace(HOST, f"{LOOPBACK}:{target.port}".encode())
        writer.write(made)
        async with asyncio.timeout(60):
            seen = {(await answer(reader))[0] for _ in range(20)}
    return seen.pop() if len(seen) == 1 else f"mixed {sorted(seen)}"


async def _flood(target: Target, first: bytes = b"", seconds: float = 4) -> str:
    """Open very many connections and let them lie."""
    opened: list[asyncio.StreamWriter] = []
    try:
        for _ in range(target.flood):
            with suppress(OSError):
                _, writer = await asyncio.open_connection(LOOPBACK, target.port)
                writer.write(first)
                opened.append(writer)
        await asyncio.sleep(seconds)
    finally:
        for writer in opened:
            writer.transport.abort()
    return "left" if len(opened) == target.flood else "cut"


async def _churn(target: Target) -> str:
    """Connect and leave at once, many times."""
    for _ in range(50):
        async with connected(target.port):
            pass
    return "left"


_HALF_HEAD = b"POST /generate HTTP/1.1\r\nHost: " + HOST + b"\r\nX-Half: "
_HALF_BODY = post(GENERATE, ASK)[:-10]
_SLOW_BODY = _HALF_HEAD + b"1\r\nContent-Length: 90000\r\n\r\n"
_CHUNKED = _HALF_HEAD + b"1\r\nTransfer-Encoding: chunked\r\n\r\n"
_WAITING = _HALF_HEAD + b"1\r\nContent-Length: 32\r\nExpect: 100-continue\r\n\r\n"
_CHAT = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 200}

BEHAVIOURS: tuple[Behaviour, ...] = (
    Behaviour("slow headers", lambda s: _drip(s, _HALF_HEAD, b"a"), _LATE, slow=True),
    Behaviour("slow request line", lambda s: _drip(s, b"GE", b"T"), _LATE | {"400"}, slow=True),
    Behaviour("slow bodies", lambda s: _drip(s, _SLOW_BODY, b" "), _LATE | {"400"}, slow=True),
    Behaviour("slow chunks", lambda s: _drip(s, _CHUNKED, b"1\r\n \r\n"), _LATE, slow=True),
    Behaviour("bodies that never come", lambda s: _drip(s, _WAITING, b""), _LATE, slow=True),
    Behaviour("half a head", lambda s: _leave_after(s, _HALF_HEAD), _LEFT),
    Behaviour("half a body", lambda s: _leave_after(s, _HALF_BODY), _LEFT),
    Behaviour("half a chunk", lambda s: _leave_after(s, _CHUNKED + b"20\r\n{"), _LEFT),
    Behaviour("half a head, reset", lambda s: _reset(s, _HALF_HEAD), _LEFT),
    Behaviour("half a body, reset", lambda s: _reset(s, _HALF_BODY), _LEFT),
    Behaviour("connect and leave", _churn, _LEFT),
    Behaviour(
        "plain answers cancelled", lambda s: _leave_after(s, post(COMPLETIONS, _LONG)), _LEFT
    ),
    Behaviour(
        "many answers cancelled",
        lambda s: _leave_after(s, post(COMPLETIONS, {**_LONG, "n": 8})),
        _LEFT,
    ),
    Behaviour("streams cancelled", lambda s: _leave_after(s, _streamed(), 3), _LEFT),
    Behaviour(
        "chat streams cancelled",
        lambda s: _leave_after(s, post(CHAT, {**_CHAT, "stream": True}), 3),
        _LEFT,
    ),
    Behaviour(
        "scored prompts cancelled",
        lambda s: _leave_after(
            s, post(COMPLETIONS, {**_LONG, "prompt": "word " * 200, "echo": True, "logprobs": 5})
        ),
        _LEFT,
    ),
    Behaviour("streams reset", lambda s: _reset(s, _streamed()), _LEFT),
    Behaviour("pipelined, then reset", lambda s: _reset(s, _pipelined(8)), _LEFT),
    Behaviour("two hundred pipelined, then reset", lambda s: _reset(s, _pipelined(200)), _LEFT),
    Behaviour("twenty pipelined", _pipeline, frozenset({"200"})),
    Behaviour("streams that nobody reads", _read_nothing, _LEFT, slow=True),
    Behaviour("streams read slowly", _read_slowly, _LEFT, slow=True),
    Behaviour("flood of idle connections", _flood, _LEFT, slow=True),
    Behaviour("flood of half heads", lambda s: _flood(s, _HALF_HEAD), _LEFT, slow=True),
)
