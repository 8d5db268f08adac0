"""Calls of tools that a request asks for, over HTTP: `python -m benchmarks.tool_calls`.

The default model gets requests that name a tool, or require one of several. A call holds if it is
the right tool, its arguments are JSON that its schema takes, and the answer says that it is a call.
Every second request is streamed.
"""

import asyncio
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
from openai import AsyncOpenAI
from rich.console import Console

from benchmarks.support.results import option_parser, save_result
from server.testing import ServerProcess
from telemetry.machine import describe

_AT_ONCE = 8
_MAX_TOKENS = 512
_SHORT = {"type": "string", "maxLength": 40}
_NUMBER = {"type": "integer", "minimum": -999, "maximum": 999}
_PLACE = {"type": "object", "properties": {"city": _SHORT, "country": _SHORT}, "required": ["city"]}
_PARAMETERS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "properties": {"city": _SHORT, "unit": {"enum": ["celsius", "fahrenheit"]}},
        "required": ["city", "unit"],
    },
    "add": {
        "properties": {"a": _NUMBER, "b": _NUMBER},
        "required": ["a", "b"],
    },
    "now": {"properties": {}},
    "search": {
        "properties": {
            "query": _SHORT,
            "limit": {"type": "integer", "minimum": 1, "maximum": 20},
            "recent": {"type": "boolean"},
        },
        "required": ["query"],
    },
    "send_message": {
        "properties": {
            "to": {"type": "array", "items": _SHORT, "minItems": 1, "maxItems": 3},
            "text": {"type": "string", "maxLength": 120},
            "urgent": {"type": ["boolean", "null"]},
        },
        "required": ["to", "text", "urgent"],
    },
    "plan_trip": {
        "properties": {
            "start": {"$ref": "#/$defs/place"},
            "stops": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
        },
        "required": ["start", "stops"],
        "$defs": {"place": _PLACE},
    },
}
_QUESTIONS = (
    "What is the weather like in Lisbon?",
    "How much is 17 plus 25?",
    "Tell Anna and Ben that dinner is at eight.",
    "Plan a trip from Oslo over Bergen.",
    "Find news about tides.",
    "What time is it?",
    "Write a poem about the sea.",
)


def _tool(name: str) -> dict[str, Any]:
    schema = {"type": "object", "additionalProperties": False, **_PARAMETERS[name]}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def _body(number: int, named: bool) -> dict[str, Any]:
    names = list(_PARAMETERS)
    choice: object = "required"
    if named:
        function = {"name": names[number % len(names)]}
        choice = {"type": "function", "function": function}
    question = _QUESTIONS[number % len(_QUESTIONS)]
    return {
        "model": "SmolLM2-135M-Instruct",
        "messages": [{"role": "user", "content": question}],
        "tools": [_tool(name) for name in names],
        "tool_choice": choice,
        "temperature": (0.0, 0.7, 1.0)[number % 3],
        "seed": number,
        "max_tokens": _MAX_TOKENS,
    }


async def _answer(client: AsyncOpenAI, body: dict[str, Any], streamed: bool) -> tuple[str, Any]:
    """Return why an answer ended, and its calls as pairs of name and arguments."""
    if not streamed:
        completion = await client.chat.completions.create(**body)
        choice = completion.choices[0]
        calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
        return str(choice.finish_reason), calls
    reason = ""
    parts: dict[int, list[str]] = {}
    async for chunk in await client.chat.completions.create(**body, stream=True):
        for one in chunk.choices:
            reason = one.finish_reason or reason
            for call in one.delta.tool_calls or []:
                entry = parts.setdefault(call.index, ["", ""])
                entry[0] += call.function.name or ""
                entry[1] += call.function.arguments or ""
    return reason, [tuple(entry) for entry in parts.values()]


def _fault(body: dict[str, Any], reason: str, calls: list[tuple[str, str]]) -> str:
    """Return what is wrong with the calls of an answer; "" for nothing."""
    if reason != "tool_calls" or not calls:
        return f"ended by {reason} with {len(calls)} calls"
    for name, arguments in calls:
        choice = body["tool_choice"]
        if isinstance(choice, dict) and name != choice["function"]["name"]:
            return f"another tool: {name}"
        try:
            jsonschema.validate(json.loads(arguments), _tool(name)["function"]["parameters"])
        except (ValueError, jsonschema.ValidationError) as error:
            return f"{name}: {type(error).__name__}"
    return ""


async def _run(url: str, calls: int, named: bool) -> Counter[str]:
    """Return how often each fault occurred, "" for none."""
    gate = asyncio.Semaphore(_AT_ONCE)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client:

        async def one(number: int) -> str:
            body = _body(number, named)
            async with gate:
                return _fault(body, *await _answer(client, body, streamed=number % 2 == 1))

        return Counter(await asyncio.gather(*map(one, range(calls))))


def main() -> None:
    """Runs the benchmark and prints its figures."""
    options = option_parser(__doc__)
    options.add_argument("--calls", type=int, default=200, help="requests of each kind")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(log=Path(folder) / "server.log").wait()
        try:
            found = {
                kind: asyncio.run(_run(server.url, arguments.calls, kind == "named"))
                for kind in ("named", "required")
            }
        finally:
            server.stop()
    console = Console(width=120)
    for kind, faults in found.items():
        console.print(f"{kind}: {faults['']} of {arguments.calls} hold")
        for fault, count in faults.items():
            if fault:
                console.print(f"  {count} x {fault}")
    result = {
        "machine": describe(),
        "calls": arguments.calls,
        "hold": {kind: faults[""] for kind, faults in found.items()},
        "faults": {kind: {k: v for k, v in faults.items() if k} for kind, faults in found.items()},
    }
    console.print(f"written to {save_result('tool_calls', result, arguments.json)}")


if __name__ == "__main__":
    main()
