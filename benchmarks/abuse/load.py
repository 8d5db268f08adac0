"""The load generator of `benchmarks.abuse`: good clients, and everything that is hostile.

`python -m benchmarks.abuse.load` is started by the benchmark as a process of its own, prints its
findings as JSON, and ends by itself. It speaks to 127.0.0.1 alone.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.abuse.cases import CASES, CHAT, COMPLETIONS, GENERATE, Case
from benchmarks.abuse.connections import BEHAVIOURS, LOOPBACK, Behaviour, Target, exchange
from benchmarks.abuse.requests import REQUESTS

_BASE = {"trimtab": {"variant": "base"}, "max_tokens": 16, "ignore_eos": True}
_GREEDY = {**_BASE, "temperature": 0}
_WORKERS = 12  # hostile requests under way at once
_TRIES = 10  # of a good request that is told to come back later
_PAUSE = 0.1  # seconds between a good client's requests
_LONGEST = 120.0  # seconds for what has not ended when all has begun
_SLOW_START = 10.0  # seconds in which the slow ones begin

GOOD: tuple[tuple[str, dict[str, object]], ...] = (
    (GENERATE, {"prompt": "The capital of France is", **_GREEDY}),
    (GENERATE, {"prompt": "Once upon a time 🙂", **_GREEDY, "stream": True}),
    (COMPLETIONS, {"prompt": "def fibonacci(n):", **_GREEDY, "logprobs": 2}),
    (COMPLETIONS, {"prompt": "Water boils at", **_BASE, "temperature": 0.9, "seed": 7}),
    (COMPLETIONS, {"prompt": ["one two", "three four"], **_GREEDY, "stream": True}),
    (COMPLETIONS, {"prompt": "naïve café –", **_GREEDY, "echo": True, "n": 2}),
    (CHAT, {"messages": [{"role": "user", "content": "Name a colour."}], **_GREEDY}),
    (CHAT, {"messages": [{"role": "user", "content": "Why?"}], **_GREEDY, "stream": True}),
    (CHAT, {"messages": [{"role": "user", "content": "2 + 2?"}], **_BASE, "seed": 3, "top_p": 0.9}),
)


@dataclass(slots=True)
class Good:
    """What became of the good requests."""

    answered: int = 0
    changed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    put_off: int = 0  # 503 with `Retry-After`, answered later


async def _text(client: aiohttp.ClientSession, path: str, body: dict[str, object]) -> str:
    """All texts of an answer, by index. Raises `aiohttp.ClientError`."""
    async with client.post(path, json=body) as response:
        response.raise_for_status()
        if not body.get("stream"):
            return json.dumps(_said(json.loads(await response.read())))
        found: dict[str, str] = {}
        async for line in response.content:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise aiohttp.ClientPayloadError(str(chunk["error"]))
                for index, text in _said(chunk).items():
                    found[index] = found.get(index, "") + text
        return json.dumps(found)


def _said(answer: dict[str, Any]) -> dict[str, str]:
    choices: list[dict[str, Any]] = answer.get("choices", [answer])
    found = {}
    for choice in choices:
        message = next((choice[name] for name in ("message", "delta") if name in choice), choice)
        found[str(choice.get("index", 0))] = message.get("text") or message.get("content") or ""
    return found


async def _ask_well(
    client: aiohttp.ClientSession, number: int, known: list[str], good: Good
) -> None:
    path, body = GOOD[number % len(GOOD)]
    for _ in range(_TRIES):
        try:
            text = await _text(client, path, body)
        except aiohttp.ClientResponseError as error:
            later = error.headers.get("Retry-After") if error.headers else None
            if error.status == 503 and later is not None:
                good.put_off += 1
                await asyncio.sleep(int(later))
                continue
            good.lost.append(f"{path}: {error.status} {error.message}")
        except (aiohttp.ClientError, TimeoutError) as error:
            good.lost.append(f"{path}: {type(error).__name__} {error}")
        else:
            good.answered += 1
            if text != known[number % len(GOOD)]:
                good.changed.append(f"{path}: {text} and not {known[number % len(GOOD)]}")
        return
    good.lost.append(f"{path}: still 503 after {_TRIES} tries")


@dataclass(slots=True)
class AbuseKind:
    """One kind of abuse, and what was seen of it."""

    name: str
    expected: frozenset[str]
    act: Callable[[int], Awaitable[str]]
    seen: Counter[str] = field(default_factory=Counter)

    async def try_once(self, number: int) -> None:
        """Counts what came of it; `kept open` if the time is up before."""
        seen = "kept open"
        try:
            seen = await self.act(number)
        finally:
            self.seen[seen] += 1

    @property
    def wrong(self) -> list[str]:
        """What was seen and should not have been; a deliberate 503 is right everywhere."""
        return sorted(self.seen.keys() - self.expected - {"503"})


def _kind_of_case(target: Target, case: Case) -> AbuseKind:
    async def act(number: int) -> str:
        payload = case.payloads[number % len(case.payloads)]()
        status, body = await exchange(target, payload)
        refused = case.enveloped and status.isdigit() and int(status) >= 400
        return f"{status} bare" if refused and not _is_envelope(body) else status

    return AbuseKind(case.kind, case.expected, act)


def _kind_of_behaviour(target: Target, behaviour: Behaviour) -> AbuseKind:
    async def act(_: int) -> str:
        try:
            return await behaviour.act(target)
        except OSError:
            return "cut"

    return AbuseKind(behaviour.kind, behaviour.expected, act)


def _is_envelope(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body)["error"]["message"], str)
    except (ValueError, KeyError, TypeError):
        return False


async def _abuse(target: Target, count: int, rate: float, slow: bool) -> list[AbuseKind]:
    """`count` of all kinds in a random order, `rate` a second; the slow ones once each."""
    fast = [_kind_of_case(target, case) for case in (*CASES, *REQUESTS)]
    fast += [_kind_of_behaviour(target, b) for b in BEHAVIOURS if not b.slow]
    lasting = [_kind_of_behaviour(target, b) for b in BEHAVIOURS if b.slow and slow]
    places = asyncio.Semaphore(_WORKERS)

    async def soon(kind: AbuseKind) -> None:
        await asyncio.sleep(target.chance.uniform(0, _SLOW_START))
        await kind.try_once(0)

    async def placed(kind: AbuseKind, number: int) -> None:
        async with places:
            await kind.try_once(number)

    work = [asyncio.create_task(soon(kind)) for kind in lasting]
    turns = [divmod(number, len(fast)) for number in range(count - len(lasting))]
    target.chance.shuffle(turns)
    for turn, at in turns:
        work.append(asyncio.create_task(placed(fast[at], turn)))
        await asyncio.sleep(1 / rate)
    await asyncio.wait(work, timeout=_LONGEST)
    for task in work:
        task.cancel()
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    return [kind for kind in (*fast, *lasting) if kind.seen]


async def run(options: argparse.Namespace) -> dict[str, object]:
    """Learns the good answers alone, then asks for them all the time, later beside the abuse."""
    target = Target(options.port, options.flood, random.Random(options.seed))
    good, over = Good(), asyncio.Event()
    async with aiohttp.ClientSession(
        f"http://{LOOPBACK}:{options.port}", timeout=aiohttp.ClientTimeout(120)
    ) as client:
        known = [await _text(client, path, body) for path, body in GOOD]

        async def steady(first: int) -> None:
            number = first
            while not over.is_set():
                await _ask_well(client, number, known, good)
                number += 1
                await asyncio.sleep(_PAUSE)

        clients = [asyncio.create_task(steady(3 * i)) for i in range(options.clients)]
        begun = time.monotonic()
        await asyncio.sleep(options.calm)
        abused = time.monotonic()
        kinds = await _abuse(target, options.requests, options.rate, not options.no_slow)
        ended = time.monotonic()
        over.set()
        await asyncio.gather(*clients)
    return {
        "begun": begun, "abused": abused, "ended": ended,
        "good": {
            "answered": good.answered, "put_off": good.put_off,
            "changed": good.changed, "lost": good.lost,
        },
        "kinds": [
            {"kind": k.name, "sent": k.seen.total(), "seen": dict(k.seen), "wrong": k.wrong}
            for k in kinds
        ],
    }  # fmt: skip


def main() -> None:
    """Runs as the options say and prints one JSON object."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--requests", type=int, required=True)
    options.add_argument("--rate", type=float, required=True)
    options.add_argument("--flood", type=int, required=True)
    options.add_argument("--clients", type=int, required=True)
    options.add_argument("--calm", type=float, required=True)
    options.add_argument("--seed", type=int, required=True)
    options.add_argument("--no-slow", action="store_true")
    json.dump(asyncio.run(run(options.parse_args())), sys.stdout)


if __name__ == "__main__":
    main()
