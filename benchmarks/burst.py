"""Adaptation on a live server: calm, a burst above capacity, calm again.

`python -m benchmarks.burst` starts the real server on the default model, sends single requests,
then a burst of many at once, then single ones again, and shows from the responses and from
`/metrics` by which actions (variant, reader, KV budget) they were answered. It fails if the server
did not move away from the base while the queue lasted, or did not come back to it afterwards.
"""

import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.support.disclosed import disclosed_action
from benchmarks.support.results import option_parser, options_as_json, save_result
from server.testing import ServerProcess
from telemetry.machine import describe

PROMPTS = [
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain how a bicycle stays upright.",
    "List five ways to save water at home.",
    "Summarise what photosynthesis is for a ten-year-old.",
]


async def ask(client: httpx.AsyncClient, number: int, tokens: int) -> dict[str, Any]:
    """One chat request; what answered it and how long it took."""
    messages = [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}]
    body = {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    started = time.perf_counter()
    response = await client.post("/v1/chat/completions", json=body)
    found = response.json()
    if response.status_code != 200:
        return {"action": f"HTTP {response.status_code}", "reason": "", "seconds": 0.0}
    decision = found["trimtab"]
    seconds = time.perf_counter() - started
    action = disclosed_action(decision).label
    return {"action": action, "reason": decision["reason"], "seconds": seconds}


async def run(url: str, burst: int, rate: float, tokens: int) -> dict[str, list[dict[str, Any]]]:
    """The three phases. In the burst, `burst` requests arrive at `rate` a second."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        before = [await ask(client, i, tokens) for i in range(3)]
        made = []
        for number in range(burst):
            made.append(asyncio.create_task(ask(client, number, tokens)))
            await asyncio.sleep(1 / rate)
        during = list(await asyncio.gather(*made))
        after = [await ask(client, i, tokens) for i in range(3)]
    return {"before": before, "burst": during, "after": after}


def main() -> int:
    """Runs the demonstration; the exit code says whether the server adapted and came back."""
    options = option_parser(__doc__)
    options.add_argument("--burst", type=int, default=192, help="requests in the burst")
    options.add_argument("--rate", type=float, default=24.0, help="arrivals per second")
    options.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    options.add_argument("--ttft-ms", type=float, default=2000.0, help="the server's objective")
    arguments = options.parse_args()

    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        environment = {"TRIMTAB_TTFT_MS": str(arguments.ttft_ms)}
        server = ServerProcess(log=log, **environment).wait()
        try:
            phases = asyncio.run(run(server.url, arguments.burst, arguments.rate, arguments.tokens))
            metrics = server.wait_until_idle()
        finally:
            server.stop()

    table = Table(title="How requests were answered")
    for title in ("phase", "requests", "actions", "reasons", "median s", "longest s"):
        table.add_column(title)
    for phase, answers in phases.items():
        seconds = [a["seconds"] for a in answers]
        table.add_row(
            phase,
            str(len(answers)),
            _counts(a["action"] for a in answers),
            _counts(a["reason"] for a in answers),
            f"{median(seconds):.2f}",
            f"{max(seconds):.2f}",
        )
    console.print(describe())
    console.print(table)
    counted = {k: v for k, v in metrics.items() if k.startswith("trimtab_decisions_total")}
    for name, value in sorted(counted.items()):
        console.print(f"{name} {value:g}", markup=False, highlight=False)

    adapted = any(a["action"] != "base" for a in phases["burst"])
    calm = all(a["action"] == "base" for a in [*phases["before"], *phases["after"]])
    console.print(f"cut the work of answers under load: {adapted}")
    console.print(f"base before and after: {calm}")
    result = {"machine": describe(), "arguments": options_as_json(arguments), "phases": phases}
    console.print(
        f"written to {save_result('burst', result | {'metrics': counted}, arguments.json)}"
    )
    return 0 if adapted and calm else 1


def _counts(values: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(values).most_common())


if __name__ == "__main__":
    sys.exit(main())
