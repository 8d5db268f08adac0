"""The same traffic through the simulation, at the speed that the base had around each run.

`python -m benchmarks.replay.simulated --profile PROFILE --trace FILE` runs policies in simulated
traffic alone, without any server, and prints the table of policies that the live replay prints.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.replay.comparison import Cell, RunResult, compare, print_comparison
from benchmarks.replay.open_loop import SLOTS, Objective, ReplayRun, ScheduledRequest
from benchmarks.replay.servers import WITHOUT_READERS
from benchmarks.support.results import option_parser, options_as_json, save_result
from policies import Objectives
from policies.registry import UnknownPolicyError, named_policy
from policies.simulation.choices import choice_labels, profile_choices
from policies.simulation.deciding import replay
from policies.simulation.engine import EngineLimits, SimulatedEngine
from policies.simulation.outcome import Outcome
from policies.simulation.profile import Profile, load_profile
from policies.simulation.scenario import Scenario
from policies.simulation.server import SimulatedServer
from policies.simulation.simulated_request import SimulatedRequest
from policies.simulation.traffic import Arrival, Lengths, at_load, read_trace, scaled, synthetic
from policies.training.fluid_bound import QualityBounds

Figures = Mapping[Cell, Sequence[Mapping[str, float]]]
POLICIES = {
    "prompts": ("rule", "static:base", "refusing:base", "static:mix-50", "random"),
    "own": ("rule", "rule without readers", "refusing:base", "static:base"),
}
"""Those that are run unless others are named, by how lengths are scaled."""
COMPARED = ("ttft_mean", "tokens_per_second", "attained")


def base_rate(profile: Profile, requests: Sequence[ScheduledRequest]) -> float:
    """Return the requests a second that the base answers in the simulation, always busy."""
    engine = SimulatedEngine(
        profile.rates, EngineLimits(max_running=SLOTS), lambda row, clock: None
    )
    for index, one in enumerate(requests):
        cached = one.prompt_tokens + one.output
        engine.submit(SimulatedRequest(index, 0, 0.0, one.prompt_tokens, one.output, cached))
    engine.finish()
    return len(requests) / engine.clock


def simulate(
    profile: Profile, arrivals: Sequence[Arrival], policy: str, objective: Objective, seed: int
) -> tuple[RunResult, list[Outcome]]:
    """Return what becomes of each request under a policy. Raises `UnknownPolicyError`."""
    if policy.endswith(WITHOUT_READERS):
        policy, profile = policy.removesuffix(WITHOUT_READERS), profile.without_readers()
    names = choice_labels(profile_choices(profile))
    chosen = named_policy(policy, names, profile.fingerprint, force=True)
    count = len(profile.prompts.names)
    rows = np.random.default_rng(seed).integers(count, size=len(arrivals)).tolist()
    # The server knows of the first objective alone.
    scenario = Scenario(Objectives(ttft=objective.ttft, firm=True), seed=seed)
    outcomes = replay(SimulatedServer(profile, arrivals, rows, scenario), chosen)
    met = [
        o.action is not None
        and o.ttft <= objective.ttft
        and o.tpot <= objective.tpot
        and o.seconds <= objective.total
        for o in outcomes
    ]
    quality = [math.exp(-o.loss) if good else 0.0 for o, good in zip(outcomes, met, strict=True)]
    return RunResult([float(good) for good in met], quality), outcomes


def _simulate_run(
    profile: Profile, run: ReplayRun, policy: str, objective: Objective, seed: int
) -> dict[str, float] | None:
    """Return what the simulation says of a run, or None for a server that is not Trimtab."""
    arrivals = [
        Arrival(a.request.at, a.request.prompt_tokens, a.request.output) for a in run.answers
    ]
    try:
        result, outcomes = simulate(profile, arrivals, policy, objective, seed)
    except UnknownPolicyError:
        return None
    served = [(a, o) for a, o in zip(arrivals, outcomes, strict=True) if o.action is not None]
    return {
        "ttft_mean": fmean(o.ttft for _, o in served),
        "tokens_per_second": sum(o.output for _, o in served)
        / max(a.at + o.seconds for a, o in served),
        "attained": fmean(result.met),
    }


@dataclass(frozen=True, slots=True)
class LiveRuns:
    """The runs of each cell, their figures, and what they were measured by.

    `probes` are the requests that the capacity of each repeat was measured with.
    """

    runs: Mapping[Cell, Sequence[ReplayRun]]
    figures: Figures
    probes: Sequence[Sequence[ScheduledRequest]]
    objective: Objective


def simulated(console: Console, profile: Profile, live_runs: LiveRuns) -> dict[str, Any]:
    """Print and return the simulation's figures beside the live ones, and the fluid bounds."""
    figures, objective = live_runs.figures, live_runs.objective
    on_paper = [base_rate(profile, probe) for probe in live_runs.probes]
    shown = Table(title="simulated over measured, means over repeats")
    for title in ("load", "policy", "ttft", "tokens/s", "attained, simulated", "measured"):
        shown.add_column(title)
    found: dict[str, Any] = {}
    for (load, policy), repeats in sorted(live_runs.runs.items()):
        made = []
        for number, run in enumerate(repeats):
            rates = profile.rates.scaled(on_paper[number] / run.capacity)
            made.append(
                _simulate_run(replace(profile, rates=rates), run, policy, objective, number)
            )
        known = [one for one in made if one is not None]
        if not known:
            continue
        paper = {name: fmean(one[name] for one in known) for name in COMPARED}
        live = {name: fmean(one[name] for one in figures[load, policy]) for name in COMPARED}
        found[f"{load:g}x {policy}"] = {"simulated": paper, "measured": live}
        shown.add_row(
            f"{load:g}", policy, f"{paper['ttft_mean'] / live['ttft_mean']:.2f}",
            f"{paper['tokens_per_second'] / live['tokens_per_second']:.2f}",
            f"{paper['attained']:.3f}", f"{live['attained']:.3f}",
        )  # fmt: skip
    console.print(shown)
    return {"simulation": found, **_bounds(console, profile, live_runs)}


def _bounds(console: Console, profile: Profile, live_runs: LiveRuns) -> dict[str, Any]:
    raw, figures = live_runs.runs, live_runs.figures
    sent = [answer.request for repeats in raw.values() for run in repeats for answer in run.answers]
    traffic = [Arrival(one.at, one.prompt_tokens, one.output) for one in sent]
    bounds = QualityBounds(profile, np.arange(len(profile.prompts.names)), traffic, SLOTS)
    fluid = {f"{load:g}": bounds.at(load) for load in sorted({load for load, _ in raw})}
    console.print(f"fluid bound by load: {fluid}")
    return {
        "fluid_bound": fluid,
        # With as many in time as each policy had, at the load that it really met.
        "best_with_as_many": {
            f"{load:g}x {policy}": bounds.at(
                median(one["load"] for one in found), median(one["attained"] for one in found)
            )
            for (load, policy), found in figures.items()
        },
    }


def add_traffic_options(options: argparse.ArgumentParser) -> None:
    """Add the options that live and simulated replays share."""
    options.add_argument("--trace", type=Path, help="default: drawn arrivals")
    options.add_argument(
        "--lengths", choices=get_args(Lengths), default="prompts",
        help="prompts: those of short chats; own: the trace's ratio of prompt to answer",
    )  # fmt: skip
    options.add_argument("--policies", nargs="+", help="default: by --lengths")
    options.add_argument("--loads", nargs="+", type=float, default=[1.5, 2.0])
    options.add_argument("--ttft", type=float, default=2.0)
    options.add_argument("--tpot", type=float, default=0.1)
    options.add_argument("--total", type=float, default=20.0)


def main() -> None:
    """Run policies in simulated traffic and print the table."""
    options = option_parser(__doc__)
    add_traffic_options(options)
    options.add_argument("--profile", type=Path, required=True, help="by `trimtab profile`")
    options.add_argument("--requests", type=int, default=300, help="of one run")
    options.add_argument("--repeats", type=int, default=6)
    arguments = options.parse_args()
    profile = load_profile(arguments.profile)
    count = arguments.requests * arguments.repeats
    trace = synthetic(count, 0) if arguments.trace is None else read_trace(arguments.trace, count)
    arrivals = scaled(trace, arguments.lengths)
    objective = Objective(arguments.ttft, arguments.tpot, arguments.total)
    runs: dict[Cell, list[RunResult]] = {}
    for load in arguments.loads:
        for policy in arguments.policies or POLICIES[arguments.lengths]:
            for seed in range(arguments.repeats):
                part = arrivals[arguments.requests * seed :][: arguments.requests]
                due = at_load(part, load, profile.rates, SLOTS)
                run, _ = simulate(profile, due, policy, objective, seed)
                runs.setdefault((load, policy), []).append(run)
    bounds = QualityBounds(profile, np.arange(len(profile.prompts.names)), arrivals, SLOTS)
    fluid = {f"{load:g}": bounds.at(load)["quality"] for load in arguments.loads}
    rows, console = compare(runs), Console(width=120)
    print_comparison(console, rows, f"simulated, lengths: {arguments.lengths}")
    console.print(f"fluid bound of the quality by load: {fluid}")
    result = {"arguments": options_as_json(arguments), "compared": rows, "fluid_bound": fluid}
    path = save_result("replay-simulated", result, arguments.json)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
