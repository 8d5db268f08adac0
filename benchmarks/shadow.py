"""What reading answers again costs live requests: `python -m benchmarks.shadow`.

Two servers, one with and one without the shadow, are asked in turn, one request after the other
with pauses in which the shadow reads. All answers are pinned to a variant, so that all of them may
be read again. Prints p50, p90 and p99 of whole requests and of first tokens, and their ratios.
"""

import random
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.support.answer_times import answer_times
from benchmarks.support.results import option_parser, save_result
from server.testing import ServerProcess
from telemetry.machine import describe

_WORDS = "tell me a story about the sea and what a sailor finds in an old letter there"


def rounds(
    servers: dict[str, ServerProcess], count: int, pause: float, tokens: int, variant: str
) -> dict[str, list[tuple[float, float]]]:
    """In turn; which goes first alternates."""
    chance = random.Random(0)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for index in range(count):
        prompt = " ".join(chance.choices(_WORDS.split(), k=30))
        order = list(servers) if index % 2 else list(reversed(servers))
        for name in order:
            found[name].append(answer_times(servers[name], prompt, tokens, variant))
            time.sleep(pause)
    return found


def main() -> None:
    """Measures and prints."""
    options = option_parser(__doc__)
    options.add_argument("--requests", type=int, default=150, help="to each server")
    options.add_argument("--pause", type=float, default=0.3, help="seconds behind each")
    options.add_argument("--tokens", type=int, default=24)
    options.add_argument("--variant", default="mix-80")
    arguments = options.parse_args()
    logs = Path(tempfile.mkdtemp())
    servers = {
        name: ServerProcess(log=logs / f"{name}.log", TRIMTAB_SHADOW_SHARE=share)
        for name, share in (("without", "0"), ("with", "1"))
    }
    try:
        for server in servers.values():
            server.wait()
        for server in servers.values():
            answer_times(server, "warm up", 8, arguments.variant)
        found = rounds(
            servers, arguments.requests, arguments.pause, arguments.tokens, arguments.variant
        )
        read = servers["with"].metrics()
    finally:
        for server in servers.values():
            server.stop()
    table = RichTable(title="Milliseconds")
    for title in ("", "without", "with the shadow", "ratio"):
        table.add_column(title, justify="right")
    result: dict[str, Any] = {"machine": describe(), "milliseconds": {}}
    for number, what in enumerate(("first token", "whole request")):
        for label, of in (
            ("p50", median),
            ("p90", lambda values: quantiles(values, n=10)[8]),
            ("p99", lambda values: quantiles(values, n=100)[98]),
        ):
            values = {name: 1e3 * of([one[number] for one in found[name]]) for name in servers}
            ratio = values["with"] / values["without"]
            row = (f"{values['without']:.1f}", f"{values['with']:.1f}", f"{ratio:.3f}")
            table.add_row(f"{what} {label}", *row)
            result["milliseconds"][f"{what} {label}"] = values
    tokens = sum(v for k, v in read.items() if k.startswith("trimtab_shadow_tokens_total"))
    result["tokens_read_again"] = tokens
    console = Console()
    console.print(table)
    console.print(f"{tokens:.0f} tokens were read again")
    console.print(f"written to {save_result('shadow', result, arguments.json)}")


if __name__ == "__main__":
    main()
