"""The same traffic through the simulation, at the speed that the base had around each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.replay.open_loop import SLOTS, Objective, ReplayRun, ScheduledRequest
from benchmarks.replay.run import Cell
from policies import Objectives
from policies.registry import UnknownPolicyError, named_policy
from policies.simulation.engine import EngineLimits, SimulatedEngine, SimulatedRequest
from policies.simulation.profile import Profile
from policies.simulation.server import Scenario, SimulatedServer, replay
from policies.simulation.traffic import Arrival
from policies.training.fluid_bound import quality_bounds

Figures = Mapping[Cell, Sequence[Mapping[str, float]]]
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
    profile: Profile, run: ReplayRun, policy: str, objective: Objective, seed: int
) -> dict[str, float] | None:
    """Return what the simulation says of a run, or None for a server that is not Trimtab."""
    try:
        chosen = named_policy(policy, profile.variants, profile.fingerprint, force=True)
    except UnknownPolicyError:
        return None
    arrivals = [
        Arrival(a.request.at, a.request.prompt_tokens, a.request.output) for a in run.answers
    ]
    count = len(profile.prompts.names)
    rows = np.random.default_rng(seed).integers(count, size=len(arrivals)).tolist()
    # The server knows of the first objective alone.
    scenario = Scenario(Objectives(ttft=objective.ttft, firm=True), seed=seed)
    server = SimulatedServer(profile, arrivals, rows, scenario)
    outcomes = replay(server, chosen)
    served = [(a, o) for a, o in zip(arrivals, outcomes, strict=True) if o.action is not None]
    met = [
        o.ttft <= objective.ttft and o.tpot <= objective.tpot and o.seconds <= objective.total
        for _, o in served
    ]
    return {
        "ttft_mean": fmean(o.ttft for _, o in served),
        "tokens_per_second": sum(o.output for _, o in served)
        / max(a.at + o.seconds for a, o in served),
        "attained": sum(met) / len(arrivals),
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
            made.append(simulate(replace(profile, rates=rates), run, policy, objective, number))
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
    lengths = int(fmean(o.prompt_tokens for o in sent)), int(fmean(o.output for o in sent))
    rows = np.arange(len(profile.prompts.names))

    def bounds(load: float, served: float = 0.0) -> dict[str, float]:
        return quality_bounds(profile, rows, lengths, load, SLOTS, served)

    fluid = {f"{load:g}": bounds(load) for load in sorted({load for load, _ in raw})}
    console.print(f"fluid bound by load: {fluid}")
    return {
        "fluid_bound": fluid,
        # With as many in time as each policy had, at the load that it really met.
        "best_with_as_many": {
            f"{load:g}x {policy}": bounds(
                median(one["load"] for one in found), median(one["attained"] for one in found)
            )
            for (load, policy), found in figures.items()
        },
    }
