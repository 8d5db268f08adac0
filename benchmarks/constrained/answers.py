"""Answers by JSON Schema over HTTP, each checked: `python -m benchmarks.constrained.answers`.

Chats of mixed schemas, in turn streamed and whole, greedy and sampled, are sent to a server of the
default model, eight at once. Each answer must end by itself, parse, and be valid by `jsonschema`;
those of schemas without bounds, whose names have `free`, may be cut by `max_tokens`.
Prints how many do, by schema, and what was wrong with the others.
"""

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import jsonschema
from rich.console import Console

from benchmarks.constrained.schemas import SCHEMAS, Schema
from benchmarks.support.results import option_parser, save_result
from server.testing import ServerProcess
from telemetry.machine import describe

STREAMS, MAX_TOKENS = 8, 1024
_TEMPERATURES = (0.0, 0.7, 1.0)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One answer: `problem` is what is wrong with it, "" for nothing."""

    schema: str
    text: str
    finish_reason: str
    problem: str


def problem_of(text: str, finish_reason: str | None, schema: Schema) -> str:
    """Return what is wrong with an answer, "" for nothing."""
    if finish_reason != "stop":
        return f"it ended by {finish_reason}"
    try:
        value = json.loads(text)
        jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0]
    return ""


async def _answer(client: aiohttp.ClientSession, url: str, number: int) -> _Answer:
    name = list(SCHEMAS)[number % len(SCHEMAS)]
    question, schema = SCHEMAS[name]
    turn = number // len(SCHEMAS)
    streamed = (turn + number) % 2 == 1
    body = {
        "messages": [{"role": "user", "content": f"{question} Answer in JSON."}],
        "max_tokens": MAX_TOKENS,
        "temperature": _TEMPERATURES[turn % len(_TEMPERATURES)],
        "seed": number,
        "stream": streamed,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        },
    }
    async with client.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            return _Answer(name, "", "", f"{response.status}: {await response.text()}")
        if streamed:
            text, reason = await _streamed(response)
        else:
            choice = (await response.json())["choices"][0]
            text, reason = choice["message"]["content"], choice["finish_reason"]
    return _Answer(name, text, reason, problem_of(text, reason, schema))


async def _streamed(response: aiohttp.ClientResponse) -> tuple[str, str]:
    text, reason = "", ""
    async for line in response.content:
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            return text, str(event["error"])
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
            reason = choice["finish_reason"] or reason
    return text, reason


async def _answers(url: str, count: int) -> list[_Answer]:
    timeout = aiohttp.ClientTimeout(600)
    gate = asyncio.Semaphore(STREAMS)

    async with aiohttp.ClientSession(timeout=timeout) as client:

        async def one(number: int) -> _Answer:
            async with gate:
                return await _answer(client, url, number)

        return await asyncio.gather(*map(one, range(count)))


def main() -> None:
    """Run the benchmark and print its figures."""
    options = option_parser(__doc__)
    options.add_argument("--count", type=int, default=1000)
    options.add_argument("--url", help="a server that runs already")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        answers = _run(arguments, Path(folder) / "server.log")
    console = Console(width=140)
    console.print(describe())
    wrong = [answer for answer in answers if answer.problem]
    for answer in wrong:
        console.print(f"{answer.schema}: {answer.problem}: {answer.text[:300]!r}", markup=False)
    good = len(answers) - len(wrong)
    cut = [one for one in wrong if one.finish_reason == "length" and "free" in one.schema]
    console.print(f"{good} of {len(answers)} answers ended, parse and are valid")
    console.print(f"{len(cut)} of schemas without bounds were cut by max_tokens")
    result = {
        "machine": describe(),
        "answers": len(answers),
        "valid": good,
        "cut_without_bounds": len(cut),
        "wrong": dict(Counter(answer.schema for answer in wrong)),
        "finish_reasons": dict(Counter(answer.finish_reason for answer in answers)),
    }
    path = save_result("constrained-answers", result, arguments.json)
    console.print(f"written to {path}")


def _run(arguments: argparse.Namespace, log: Path) -> list[_Answer]:
    if arguments.url:
        return asyncio.run(_answers(arguments.url, arguments.count))
    server = ServerProcess(log=log).wait()
    try:
        return asyncio.run(_answers(server.url, arguments.count))
    finally:
        server.stop()


if __name__ == "__main__":
    main()
