"""Hostile requests and connections against a live server: `python -m benchmarks.abuse`.

Some good clients ask all the time, and their answers are known. Beside them come 500 requests and
connections of some ninety kinds that a server must bear: broken, huge, slow, half-sent, cut off.
It fails (exit code 1) if a good answer is lost or changed, if anything but a deliberate 503 or the
right refusal comes back, if `/health`, asked every 20 ms, is slower than 50 ms at p99, or if slots
or cache are still in use at the end. Everything stays on 127.0.0.1 and is bounded in number and
time.
"""

import importlib
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.abuse.attack import add_options, attack
from benchmarks.support.results import option_parser, options_as_json, save_result
from server.testing import ServerProcess
from telemetry.machine import describe

HEALTH_P99 = 0.05  # seconds
_DESCRIPTORS = 8192  # open files that are asked for, for this process and the server


def main() -> int:
    """Run the benchmark; the exit code says whether the server bore it."""
    options = option_parser(__doc__)
    add_options(options)
    options.add_argument("--tiny", action="store_true", help="a tiny random model, for a quick try")
    arguments = options.parse_args()
    _allow_many_open_files()
    with tempfile.TemporaryDirectory() as folder:
        model = _tiny_model(Path(folder)) if arguments.tiny else ()
        server = ServerProcess(*model, log=Path(folder) / "server.log").wait(300)
        try:
            found = attack(server, arguments)
        finally:
            server.stop()
    p99 = found["health"]["abused"]["p99_ms"]
    if p99 >= 1e3 * HEALTH_P99:
        found["faults"].append(f"/health p99 is not under {1e3 * HEALTH_P99:.0f} ms")
    console = Console(width=120)
    _print(console, found)
    result = {"machine": describe(), "arguments": options_as_json(arguments), **found}
    console.print(f"written to {save_result('abuse', result, arguments.json)}")
    return 1 if found["faults"] else 0


def _allow_many_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def _tiny_model(folder: Path) -> tuple[str, str]:
    tiny = importlib.import_module("tests.support.tiny")
    return "--model", str(tiny.save_tiny(folder / "tiny-llama"))


def _print(console: Console, found: dict[str, Any]) -> None:
    console.print(describe())
    console.print(_table(found))
    good = found["good"]
    console.print(
        f"good answers: {good['answered']}, lost {len(good['lost'])}, changed "
        f"{len(good['changed'])}, put off by 503 {good['put_off']}"
    )
    for phase, latencies in found["health"].items():
        console.print(
            f"/health {phase}: p50 {latencies['p50_ms']:.1f} ms, p99 {latencies['p99_ms']:.1f}, "
            f"max {latencies['max_ms']:.1f}, {latencies['asked']} asked, "
            f"{latencies['failed']} failed"
        )
    for fault in found["faults"]:
        console.print(f"FAULT {fault}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(found['kinds'])} kinds, {len(found['faults'])} faults")


def _table(found: dict[str, Any]) -> Table:
    table = Table(title="What came and what was answered")
    for title in ("kind", "sent", "seen", "verdict"):
        table.add_column(title)
    for kind in sorted(found["kinds"], key=lambda k: str(k["kind"])):
        seen = ", ".join(f"{name} {count}" for name, count in sorted(kind["seen"].items()))
        verdict = f"[red]not {', '.join(kind['wrong'])}[/red]" if kind["wrong"] else "right"
        table.add_row(kind["kind"], str(kind["sent"]), seen, verdict)
    return table


if __name__ == "__main__":
    sys.exit(main())
