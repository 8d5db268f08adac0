"""A long mixed load on a live server: `python -m benchmarks.soak`.

2,000 requests, 64 at once: a third is cancelled, a fifth goes beyond limits, prompts have 10 to 900
words of about one token each, and half of the good requests are one of two twins. It fails (exit
code 1) if a request that was accepted and not cancelled does not complete, if twins differ, if one
beyond limits is not refused with 400 or 413, if slots or cache are still in use at the end, or if
the server's memory grows by 20 MB or more after the first third.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.soak.run import add_options, soak
from benchmarks.support.results import option_parser, options_as_json, save_result
from server.testing import ServerProcess
from telemetry.machine import describe

MAX_GROWTH = 20e6  # bytes after the warm-up


def main() -> int:
    """Run the soak; the exit code says whether all went well."""
    options = option_parser(__doc__)
    add_options(options)
    options.add_argument("--model", help="another model than the default one")
    # Small enough for the warm-up to write to all of it, so that this is no growth afterwards.
    options.add_argument("--kv-tokens", type=int, default=32_768, help="the server's cache")
    arguments = options.parse_args()
    model = ("--model", arguments.model) if arguments.model else ()
    with tempfile.TemporaryDirectory() as folder:
        cache = {"TRIMTAB_KV_TOKENS": str(arguments.kv_tokens)}
        server = ServerProcess(*model, log=Path(folder) / "server.log", **cache).wait(300)
        try:
            found = soak(server, arguments)
        finally:
            server.stop()
    growth = found["memory"]["growth"]
    if growth >= MAX_GROWTH:
        found["faults"].append(f"memory grew by {growth / 1e6:.0f} MB after the warm-up")
    console = Console(width=120)
    _print(console, found)
    result = {"machine": describe(), "arguments": options_as_json(arguments), **found}
    console.print(f"written to {save_result('soak', result, arguments.json)}")
    return 1 if found["faults"] else 0


def _print(console: Console, found: dict[str, Any]) -> None:
    table = Table(title="What became of the requests")
    for title in ("kind", "outcome", "requests"):
        table.add_column(title)
    for name, count in sorted(found["outcomes"].items()):
        table.add_row(*name.split(": "), str(count))
    console.print(describe())
    console.print(table)
    shortest, longest = found["prompt_tokens"]
    console.print(
        f"{found['seconds']:.0f} s; prompts of {shortest} to {longest} tokens; "
        f"{found['equal']} of {found['twins']} twins equal"
    )
    memory = {name: value / 1e6 for name, value in found["memory"].items()}
    console.print(
        f"memory: {memory['warm']:.0f} MB warm, {memory['most']:.0f} at most, "
        f"{memory['last']:.0f} in the end"
    )
    for fault in found["faults"]:
        console.print(f"FAULT {fault}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
