"""Real traffic against live servers: `python -m benchmarks.replay --trace FILE --prompts FILE`.

Arrivals and lengths of a trace, scaled to this machine, with real prompts, go to a fresh server
under each policy, the same requests for all, at multiples of what the base can answer: that is
measured before and after every run, on a server of its own, since a shared machine is not always as
fast; where it changed by a fifth meanwhile, nobody knows the load and the run is done once more.
Refused, dropped and late requests are lost. What was answered is read again by the base and by the
variant that answered: quality is exp(-KL).
With `--lengths prompts` prompts and answers are scaled each to the lengths of short chats, and a
request has the real prompt of the same rank. With `--lengths own` both are scaled by one factor, so
that there is as much to read for each written token as in the trace; prompts are then joined from
the texts of `--prompts`, and policies with readers and without are compared with the base.
With `--profile` the same traffic also goes through the simulation, at the speed that the base had.
With `--llama-cpp` FOLDER `llama-server` is a peer, on the Q4_0 that it runs fastest.
"""

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.plots import draw_quality_by_load
from benchmarks.replay.comparison import Cell, compare, print_comparison
from benchmarks.replay.figures import figures, print_table, run_result
from benchmarks.replay.losses import LossMeter
from benchmarks.replay.open_loop import Objective
from benchmarks.replay.run import Replay
from benchmarks.replay.servers import LLAMA
from benchmarks.replay.simulated import POLICIES, LiveRuns, add_traffic_options, simulated
from benchmarks.replay.trace import TraceSource
from benchmarks.support.results import option_parser, options_as_json, save_result
from policies.simulation.profile import load_profile
from server.engine.loading.load import load_tokenizer
from server.engine.loading.source import DEFAULT_MODEL, resolve_model
from telemetry.machine import describe


def main() -> None:
    """Run the replay, print one table and draw one plot."""
    arguments = _options().parse_args()
    objective = Objective(arguments.ttft, arguments.tpot, arguments.total)
    profile = None if arguments.profile is None else load_profile(arguments.profile)
    tokenizer = load_tokenizer(resolve_model(DEFAULT_MODEL))
    source = TraceSource(arguments.trace, arguments.prompts, arguments.lengths)
    requests = source.requests(tokenizer)
    console = Console(width=150)
    console.print(describe())
    replay = Replay(requests, objective, arguments.seconds, arguments.llama_cpp, console)
    raw = replay.run(_cells(arguments), arguments.repeats)
    meter = LossMeter()
    losses = {cell: [meter.losses(run.answers) for run in repeats] for cell, repeats in raw.items()}
    runs = {
        cell: [figures(run, objective, kl) for run, kl in zip(raw[cell], found, strict=True)]
        for cell, found in losses.items()
    }
    compared = compare(
        {
            cell: [run_result(run, objective, kl) for run, kl in zip(raw[cell], found, strict=True)]
            for cell, found in losses.items()
        }
    )
    result = {
        "machine": describe(),
        "arguments": {**options_as_json(arguments), "prompts": Path(arguments.prompts).name},
        "compared": compared,
        "runs": {f"{load:g}x {policy}": found for (load, policy), found in runs.items()},
    }
    print_table(console, runs)
    print_comparison(console, compared, f"lengths: {arguments.lengths}")
    if profile is not None:
        live = LiveRuns(raw, runs, replay.probes, objective)
        result |= simulated(console, profile, live)
    name = "replay" if arguments.lengths == "prompts" else "replay-own-lengths"
    path = save_result(name, result, arguments.json)
    draw_quality_by_load(path.with_suffix(".png"), runs)
    console.print(f"written to {path}")


def _options() -> argparse.ArgumentParser:
    options = option_parser(__doc__)
    add_traffic_options(options)
    options.add_argument("--prompts", required=True)
    options.add_argument("--profile", type=Path, help="by `trimtab profile`")
    options.add_argument("--calm", nargs="+", default=["rule"], help="those at half load too")
    options.add_argument("--seconds", type=float, default=40.0)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--llama-cpp", type=Path)
    return options


def _cells(arguments: argparse.Namespace) -> list[Cell]:
    """Return the loads and policies to run, in turn."""
    named = arguments.policies or POLICIES[arguments.lengths]
    policies = list(named) + [LLAMA] * (arguments.llama_cpp is not None)
    cells = [(0.5, policy) for policy in arguments.calm]
    return cells + [(load, policy) for load in arguments.loads for policy in policies]


if __name__ == "__main__":
    main()
