"""An open loop of real prompts: requests leave when the trace says so, whatever the server does.

The client is aiohttp's, which parses in C: it runs on the server's cores, and takes what it takes
from them.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from server.settings import JobSettings

PATIENCE = 60.0  # seconds after which a client gives up
SLOTS = JobSettings().max_running  # answers written at once, and clients that keep a server busy


@dataclass(frozen=True, slots=True)
class Offer:
    """One request: when it leaves (seconds), what it asks, and how many tokens it wants."""

    at: float
    prompt: str
    prompt_tokens: int
    output: int


@dataclass(slots=True)
class Answer:
    """What the client saw. Seconds from when the request should have left; None: never."""

    offer: Offer
    status: int = 0
    variant: str = "base"
    ttft: float | None = None
    seconds: float | None = None
    tokens: int = 0
    text: str = ""

    @property
    def tpot(self) -> float | None:
        """Of the tokens after the first."""
        if self.ttft is None or self.seconds is None or self.tokens < 2:
            return None
        return (self.seconds - self.ttft) / (self.tokens - 1)


@dataclass(frozen=True, slots=True)
class Objective:
    """Seconds to the first token, per further token, and to the end; all of them must be kept."""

    ttft: float
    tpot: float
    total: float

    def met(self, answer: Answer) -> bool:
        """Whether a client was served in time."""
        if answer.status != 200 or answer.ttft is None or answer.seconds is None:
            return False
        tpot = answer.tpot or 0.0
        return answer.ttft <= self.ttft and tpot <= self.tpot and answer.seconds <= self.total


@dataclass(frozen=True, slots=True)
class Run:
    """What clients saw, and how many requests a second the base answered before and after."""

    answers: list[Answer]
    capacity: float


async def ask(client: aiohttp.ClientSession, offer: Offer, started: float) -> Answer:
    """One streamed chat completion, timed from when it was due."""
    due = started + offer.at
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    found = Answer(offer)
    body = {
        "messages": [{"role": "user", "content": offer.prompt}],
        "max_tokens": offer.output, "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    try:
        async with client.post("/v1/chat/completions", json=body) as response:
            found.status = response.status
            if response.status == 200:
                async for line in response.content:
                    _hear(found, line, due)
                found.seconds = time.perf_counter() - due
    except (aiohttp.ClientError, TimeoutError):
        found.status = 0
    return found


def _hear(found: Answer, line: bytes, due: float) -> None:
    if not line.startswith(b"data: {"):
        return
    chunk: dict[str, Any] = json.loads(line[6:])
    if "trimtab" in chunk:
        found.variant = chunk["trimtab"]["variant"]
    for choice in chunk.get("choices", ()):
        piece = choice.get("delta", {}).get("content")
        if piece:
            found.ttft = time.perf_counter() - due if found.ttft is None else found.ttft
            found.text += piece
        found.tokens += bool(piece)


async def send(url: str, offers: Sequence[Offer]) -> list[Answer]:
    """All of them, each at its time."""
    async with _client(url) as client:
        started = time.perf_counter()
        return list(await asyncio.gather(*(ask(client, offer, started) for offer in offers)))


async def capacity(url: str, offers: Sequence[Offer], clients: int) -> float:
    """Requests a second that a server answers when `clients` ask without a pause."""
    waiting = list(offers)[::-1]

    async def one(client: aiohttp.ClientSession) -> None:
        while waiting:
            offer = waiting.pop()
            now = time.perf_counter()
            await ask(client, Offer(0.0, offer.prompt, offer.prompt_tokens, offer.output), now)

    async with _client(url) as client:
        started = time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(clients)))
        return len(offers) / (time.perf_counter() - started)


def _client(url: str) -> aiohttp.ClientSession:
    """For as many connections as there are requests."""
    return aiohttp.ClientSession(
        url,
        timeout=aiohttp.ClientTimeout(PATIENCE),
        connector=aiohttp.TCPConnector(limit=0),
    )
