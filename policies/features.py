"""An observation as the numbers that a learned policy reads, and which of its choices are open."""

from collections.abc import Sequence

import numpy as np

from policies.observation import Action, Candidate, Observation

REFUSE = "refuse"
HARDWARE = ("charge", "charge_missing", "on_battery", "hot", "hot_missing", "save_energy")
HOST = ("wait", "demand", "tpot", *HARDWARE)
GENERAL = ("wait", "demand", "prefill", "tpot", "complexity", *HARDWARE)
"""Before each variant's predicted loss. Times are shares of the objectives, or of the defaults."""
DEFAULT_TTFT, DEFAULT_TPOT = 2.0, 0.1
PATIENCE, LARGEST = 0.85, 0.45
"""Of the objective for the first token: a longer queue makes a request too late, the largest
requests sooner than those that are half of the work or less."""
CLIP = 4.0
"""What is larger says nothing more: times, demand and losses end here."""


def feature_names(variants: Sequence[str]) -> tuple[str, ...]:
    """Of the vector's entries."""
    return (*GENERAL, *(f"loss {name}" for name in variants))


def hidden_columns(blind: str | None, variants: Sequence[str]) -> np.ndarray:
    """`[features]` of bool: those of the host and its queue, or of the prompt; none of them."""
    of = {None: (), "host": HOST, "prompt": ("complexity", "prefill", "loss")}[blind]
    return np.array([name.split()[0] in of for name in feature_names(variants)])


def choices(variants: Sequence[str]) -> tuple[str, ...]:
    """What a learned policy chooses from: a variant each, or to refuse."""
    return (*variants, REFUSE)


def vector(observation: Observation, variants: Sequence[str]) -> np.ndarray:
    """`[features]` in float32. A missing reading is 0 and marked; an unmeasured loss is `CLIP`."""
    wanted, base = observation.objectives, observation.candidates[0]
    charge, hot = observation.battery_charge, observation.hot
    losses = {
        c.action.variant: c.loss for c in observation.candidates if c.action.kv_budget is None
    }
    ttft = DEFAULT_TTFT if wanted.ttft is None else wanted.ttft
    tpot = DEFAULT_TPOT if wanted.tpot is None else wanted.tpot
    return pack(
        wait=observation.wait / ttft,
        demand=observation.demand,
        prefill=(base.ttft - observation.wait) / ttft,
        tpot=base.tpot / tpot,
        complexity=observation.complexity,
        hardware=(
            0.0 if charge is None else charge,
            float(charge is None),
            float(bool(observation.on_battery)),
            float(bool(hot)),
            float(hot is None),
            float(observation.save_energy),
        ),
        losses=[_known(losses.get(v)) for v in variants],
    )


def pack(
    wait: float,
    demand: float,
    prefill: float,
    tpot: float,
    complexity: float,
    hardware: Sequence[float],
    losses: Sequence[float],
) -> np.ndarray:
    """The same from its parts, for who has no observation at hand; `losses` end at `CLIP`."""
    times = [v if v < CLIP else CLIP for v in (wait, demand, prefill, tpot)]
    return np.array([*times, complexity, *hardware, *losses], np.float32)


def _known(loss: float | None) -> float:
    return CLIP if loss is None else min(loss, CLIP)


def open_choices(observation: Observation, variants: Sequence[str]) -> np.ndarray:
    """`[choices]` of bool: variants that are not blocked, and to refuse if it is late."""
    free = {c.action.variant for c in observation.candidates if c.blocked is None}
    return np.array([*(name in free for name in variants), may_refuse(observation)])


def may_refuse(observation: Observation) -> bool:
    """Whether the queue is too long for a request with a firm objective for the first token.

    In place of one large request several small ones are in time.
    """
    wanted = observation.objectives
    if not wanted.firm or wanted.ttft is None:
        return False
    return observation.wait > patience(observation.rank) * wanted.ttft


def patience(rank: float) -> float:
    """How long the queue may be for a request of this rank by its work, in TTFT objectives."""
    return PATIENCE - (PATIENCE - LARGEST) * max(0.0, 2 * rank - 1)


def largest_budget(observation: Observation, variant: str) -> Candidate:
    """The variant with the largest cache that is not blocked, or else with any."""
    mine = [c for c in observation.candidates if c.action.variant == variant]
    free = [c for c in mine if c.blocked is None]
    return (free or mine)[0]


def cheapest(observation: Observation) -> Action:
    """What would be served at the least cost, as a name for what is refused."""
    free = [c for c in observation.candidates if c.blocked is None] or observation.candidates
    return min(free, key=lambda c: c.cost).action
