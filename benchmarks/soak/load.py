"""The requests of `benchmarks.soak`, and what becomes of them.

Some are good, some are cancelled, and some go beyond limits.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

PATHS = ("/generate", "/v1/completions", "/v1/chat/completions")
_WORDS = (
    "river", "stone", "apple", "window", "seven", "quickly", "under", "blue", "the", "and", "of",
    "music", "letter", "paper", "green", "mountain", "ship", "garden", "seldom", "when", "morning",
    "number", "table", "old", "write", "little", "city", "water",
)  # fmt: skip
_LONG = "water " * 20_000
_BEYOND: tuple[dict[str, object], ...] = (
    {"user": "x" * (5 * 2**20)},
    {"prompt": _LONG, "messages": [{"role": "user", "content": _LONG}]},
    {"max_tokens": 10**7}, {"n": 10**6}, {"temperature": -1}, {"top_p": 7}, {"min_p": 3},
    {"stop": ["x"] * 100}, {"stop": "x" * 10_000}, {"stop_token_ids": list(range(5000))},
    {"logit_bias": {str(token): 1 for token in range(5000)}}, {"seed": "x"},
    {"trimtab": {"variant": "nope"}}, {"prompt": 5, "messages": 5},
)  # fmt: skip
"""What makes a request too much, or wrong."""
_REFUSALS = (400, 413)
_MAX_TOKENS = 48
_MAX_CANCEL_AFTER = 1.5  # seconds at most


@dataclass(frozen=True, slots=True)
class SoakRequest:
    """One request. Requests of one `twin` number must get the same text."""

    kind: str  # good, cancelled or beyond limits
    path: str
    body: dict[str, object]
    twin: int | None = None
    cancel_after: float = 0.0  # seconds until it is cancelled


@dataclass(slots=True)
class SoakOutcome:
    """What became of them. `lengths` are those of prompts, in tokens."""

    outcomes: Counter[str] = field(default_factory=Counter)
    texts: dict[int, list[str]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def twins(self) -> tuple[int, int]:
        """How many pairs were answered, and how many of them equally."""
        pairs = [texts for texts in self.texts.values() if len(texts) == 2]
        return len(pairs), sum(first == second for first, second in pairs)


def make_requests(count: int, longest: int, seed: int) -> list[SoakRequest]:
    """`count` requests in a random order, with prompts of 10 to `longest` words."""
    chance = random.Random(seed)
    found = [
        SoakRequest(
            "cancelled", *_good(chance, longest), cancel_after=chance.uniform(0, _MAX_CANCEL_AFTER)
        )
        for _ in range(count // 3)
    ]
    for number in range(count // 5):
        path, body = _good(chance, longest)
        found.append(SoakRequest("beyond limits", path, body | _BEYOND[number % len(_BEYOND)]))
    pairs = (count - len(found)) // 4
    for number in range(pairs):
        path, body = _good(chance, longest)
        found += [
            SoakRequest("good", path, body | {"stream": bool(part)}, number) for part in range(2)
        ]
    found += [SoakRequest("good", *_good(chance, longest)) for _ in range(count - len(found))]
    chance.shuffle(found)
    return found


def _good(chance: random.Random, longest: int) -> tuple[str, dict[str, object]]:
    text = " ".join(chance.choices(_WORDS, k=chance.randint(10, longest)))
    path = chance.choice(PATHS)
    asked = (
        {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
    )
    return path, {
        **asked,
        "max_tokens": chance.randint(1, _MAX_TOKENS),
        "temperature": chance.choice((0.0, 0.7, 1.0)),
        "seed": chance.randrange(2**31),
        "stream": chance.random() < 0.5,
        "trimtab": {"variant": "base"},  # twins may meet different loads
    }


async def send_all(
    url: str, work: list[SoakRequest], at_once: int, on_done: Callable[[], None]
) -> SoakOutcome:
    """All requests, so many at once; `on_done` is called after each."""
    found, left = SoakOutcome(), iter(work)
    timeout = aiohttp.ClientTimeout(600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as client:
        await asyncio.gather(*(_worker(client, left, found, on_done) for _ in range(at_once)))
    return found


async def _worker(
    client: aiohttp.ClientSession,
    left: Iterator[SoakRequest],
    found: SoakOutcome,
    on_done: Callable[[], None],
) -> None:
    for request in left:
        try:
            outcome = await _do(client, request, found)
        except (aiohttp.ClientError, ValueError, KeyError, TimeoutError) as error:
            outcome = "broken"
            found.faults.append(
                f"{request.kind} {request.path}: {type(error).__name__} {error}"[:300]
            )
        found.outcomes[f"{request.kind}: {outcome}"] += 1
        on_done()


async def _do(client: aiohttp.ClientSession, request: SoakRequest, found: SoakOutcome) -> str:
    if request.kind == "cancelled":
        try:
            async with asyncio.timeout(request.cancel_after):
                status, *_ = await _ask(client, request)
        except TimeoutError:
            return "cancelled"
        return f"{status} before"
    status, text, length = await _ask(client, request)
    right = _REFUSALS if request.kind == "beyond limits" else (200,)
    if status == 200:
        found.lengths.append(length)
        if request.twin is not None:
            found.texts.setdefault(request.twin, []).append(text)
    if status not in (*right, 503):
        found.faults.append(f"{request.kind} {request.path}: {status} {text}"[:300])
    return str(status)


async def _ask(client: aiohttp.ClientSession, request: SoakRequest) -> tuple[int, str, int]:
    """Status, text and prompt tokens. Raises `ValueError` for an answer without an end."""
    body = dict(request.body)
    if body["stream"] and request.path != PATHS[0]:
        body["stream_options"] = {"include_usage": True}
    async with client.post(request.path, json=body) as response:
        if response.status != 200:
            return response.status, await response.text(), 0
        if not body["stream"]:
            answers = [await response.json()]
        else:
            answers, ended = [], False
            async for line in response.content:
                ended |= line == b"data: [DONE]\n"
                if line.startswith(b"data: {"):
                    answers.append(json.loads(line[6:]))
            if not ended:
                raise ValueError("the stream has no end")
    return 200, *_read(answers)


def _read(answers: list[dict[str, Any]]) -> tuple[str, int]:
    """The whole text, and the prompt's tokens. Raises `ValueError` if there is no finish."""
    text, reason, length = "", None, 0
    for answer in answers:
        if "error" in answer:
            raise ValueError(str(answer["error"]))
        for choice in answer.get("choices", [answer]):
            said = next((choice[name] for name in ("message", "delta") if name in choice), choice)
            text += said.get("text") or said.get("content") or ""
            reason = choice.get("finish_reason") or reason
        length = (answer.get("usage") or {}).get("prompt_tokens", length)
    if reason not in ("stop", "length"):
        raise ValueError(f"it ended by {reason}")
    return text, length
