"""The same traffic through the simulation, at the speed that the base had around each run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.offered import SLOTS, Objective, Offer, Run
from policies import Objectives
from policies.registry import UnknownPolicyError, named_policy
from policies.simulation.engine import EngineLimits, SimulatedEngine, SimulatedRequest
from policies.simulation.profile import Profile
from policies.simulation.server import SimulatedServer, replay
from policies.simulation.traffic import Arrival
from policies.training.fluid_bound import quality_bounds

Cell = tuple[float, str]
"""The load that was wanted, and the policy."""
Figures = Mapping[Cell, Sequence[Mapping[str, float]]]
COMPARED = ("ttft_mean", "tokens_per_second", "attained")


def base_rate(profile: Profile, offers: Sequence[Offer]) -> float:
    """Requests a second that the base answers on paper, always busy."""
    engine = SimulatedEngine(
        profile.rates, EngineLimits(max_running=SLOTS), lambda row, clock: None
    )
    for index, one in enumerate(offers):
        cached = one.prompt_tokens + one.output
        engine.submit(SimulatedRequest(index, 0, 0.0, one.prompt_tokens, one.output, cached))
    engine.finish()
    return len(offers) / engine.clock


def simulate(
    profile: Profile, run: Run, policy: str, objective: Objective, seed: int
) -> dict[str, float] | None:
    """What `benchmarks.replay` would measure of a run; None for another's server."""
    try:
        chosen = named_policy(policy, profile.variants, profile.fingerprint, force=True)
    except UnknownPolicyError:
        return None
    arrivals = [Arrival(a.offer.at, a.offer.prompt_tokens, a.offer.output) for a in run.answers]
    count = len(profile.prompts.names)
    rows = np.random.default_rng(seed).integers(count, size=len(arrivals)).tolist()
    # The server knows of the first objective alone.
    world = SimulatedServer(
        profile, arrivals, rows, Objectives(ttft=objective.ttft, firm=True), seed=seed
    )
    outcomes = replay(world, chosen)
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


def simulated(
    console: Console,
    profile: Profile,
    probes: Sequence[Sequence[Offer]],
    raw: Mapping[Cell, Sequence[Run]],
    figures: Figures,
    objective: Objective,
) -> dict[str, Any]:
    """The simulation's figures beside the live ones, and the fluid bounds.

    `probes` are the requests that the capacities of each repeat were measured with.
    """
    on_paper = [base_rate(profile, probe) for probe in probes]
    shown = Table(title="simulated over measured, means over repeats")
    for title in ("load", "policy", "ttft", "tokens/s", "attained, simulated", "measured"):
        shown.add_column(title)
    found: dict[str, Any] = {}
    for (load, policy), repeats in sorted(raw.items()):
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
    return {"simulation": found, **_bounds(console, profile, raw, figures)}


def _bounds(
    console: Console, profile: Profile, raw: Mapping[Cell, Sequence[Run]], figures: Figures
) -> dict[str, Any]:
    sent = [answer.offer for repeats in raw.values() for run in repeats for answer in run.answers]
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
