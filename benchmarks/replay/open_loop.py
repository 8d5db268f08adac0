"""An open loop of real prompts: requests leave when the trace says so, whatever the server does.

The client is aiohttp's, which parses in C, because it shares the cores with the server.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.support.disclosed import disclosed_action
from policies import Action
from pruners.variant import BASE
from server.engine.config import EngineConfig

TIMEOUT = 60.0  # seconds after which a client gives up
SLOTS = EngineConfig().max_running  # answers written at once, and clients that keep a server busy
_BASE = Action(BASE)


@dataclass(frozen=True, slots=True)
class ScheduledRequest:
    """A request of the trace.

    `at` is when it leaves, in seconds from the start; `output` is the number of tokens to write.
    """

    at: float
    prompt: str
    prompt_tokens: int
    output: int


@dataclass(slots=True)
class TimedAnswer:
    """What the client got. Times are seconds from when the request was due; None: it never came.

    `action` says how it was made: the base, in full, for a server that does not say.
    """

    request: ScheduledRequest
    status: int = 0
    action: Action = _BASE
    ttft: float | None = None
    seconds: float | None = None
    tokens: int = 0
    text: str = ""

    @property
    def tpot(self) -> float | None:
        """Return the seconds per token after the first, or None if there is no such token."""
        if self.ttft is None or self.seconds is None or self.tokens < 2:
            return None
        return (self.seconds - self.ttft) / (self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Objective:
    """Seconds to the first token, per further token, and to the end: all three must be kept."""

    ttft: float
    tpot: float
    total: float

    def met(self, answer: TimedAnswer) -> bool:
        """Return whether an answer came in time."""
        if answer.status != 200 or answer.ttft is None or answer.seconds is None:
            return False
        tpot = answer.tpot or 0.0
        return answer.ttft <= self.ttft and tpot <= self.tpot and answer.seconds <= self.total


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """The answers of one run, and the requests a second that the base answers meanwhile."""

    answers: list[TimedAnswer]
    capacity: float


async def send_one(
    client: aiohttp.ClientSession, request: ScheduledRequest, started: float
) -> TimedAnswer:
    """Send one streamed chat completion when it is due, and return the timed answer."""
    due = started + request.at
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    found = TimedAnswer(request)
    body = {
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.output, "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    try:
        async with client.post("/v1/chat/completions", json=body) as response:
            found.status = response.status
            if response.status == 200:
                async for line in response.content:
                    _take_line(found, line, due)
                found.seconds = time.perf_counter() - due
    except (aiohttp.ClientError, TimeoutError):
        found.status = 0
    return found


def _take_line(found: TimedAnswer, line: bytes, due: float) -> None:
    if not line.startswith(b"data: {"):
        return
    chunk: dict[str, Any] = json.loads(line[6:])
    if "trimtab" in chunk:
        found.action = disclosed_action(chunk["trimtab"])
    for choice in chunk.get("choices", ()):
        piece = choice.get("delta", {}).get("content")
        if piece:
            found.ttft = time.perf_counter() - due if found.ttft is None else found.ttft
            found.text += piece
        found.tokens += bool(piece)


async def send_all(url: str, requests: Sequence[ScheduledRequest]) -> list[TimedAnswer]:
    """Send all requests, each when it is due, and return the answers in the same order."""
    async with _client(url) as client:
        started = time.perf_counter()
        return list(
            await asyncio.gather(*(send_one(client, request, started) for request in requests))
        )


async def measure_capacity(url: str, requests: Sequence[ScheduledRequest], clients: int) -> float:
    """Return the requests a second that a server answers to `clients` that never pause."""
    waiting = list(requests)[::-1]

    async def ask_on(client: aiohttp.ClientSession) -> None:
        while waiting:
            request = waiting.pop()
            now = time.perf_counter()
            await send_one(
                client,
                ScheduledRequest(0.0, request.prompt, request.prompt_tokens, request.output),
                now,
            )

    async with _client(url) as client:
        started = time.perf_counter()
        await asyncio.gather(*(ask_on(client) for _ in range(clients)))
        return len(requests) / (time.perf_counter() - started)


def _client(url: str) -> aiohttp.ClientSession:
    """Return a client with as many connections as there are requests."""
    return aiohttp.ClientSession(
        url,
        timeout=aiohttp.ClientTimeout(TIMEOUT),
        connector=aiohttp.TCPConnector(limit=0),
    )
