"""An observation as the numbers that a learned policy reads, and which of its choices are open."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from policies.observation import Action, Candidate, Objectives, Observation

REFUSE = "refuse"
HARDWARE_FEATURES = ("charge", "charge_missing", "on_battery", "hot", "hot_missing", "save_energy")
HOST_FEATURES = ("wait", "demand", "tpot", *HARDWARE_FEATURES)
GENERAL_FEATURES = ("wait", "demand", "prefill", "tpot", "complexity", *HARDWARE_FEATURES)
"""The features before each variant's predicted loss. Times are shares of the objectives, or of the
defaults below where a request has none."""
PROMPT_FEATURES = ("complexity", "prefill", "loss")
DEFAULT_TTFT, DEFAULT_TPOT = 2.0, 0.1
"""Seconds."""
MAX_WAIT, MAX_WAIT_LARGEST = 0.85, 0.45
"""Shares of the TTFT objective. A request is too late behind a longer queue: the first is for
requests whose size rank is 0.5 or less, the second for those of rank 1."""
CLIP = 4.0
"""Times, load and losses end here: larger values say nothing more."""

FeatureGroup = Literal["host", "prompt"]
FEATURE_GROUPS: tuple[FeatureGroup, ...] = ("host", "prompt")
_GROUPS: dict[FeatureGroup | None, tuple[str, ...]]
_GROUPS = {None: (), "host": HOST_FEATURES, "prompt": PROMPT_FEATURES}


class FeatureInputs(NamedTuple):
    """What features are computed from.

    `wait`, `prefill` (reading the prompt by the base) and `tpot` (of the base) are predicted
    seconds, `load` is the estimated load, `losses` are predicted nats per token of each variant,
    None where never measured. `charge` (0..1) and `hot` are None where there is no reading.
    """

    objectives: Objectives
    wait: float
    load: float
    prefill: float
    tpot: float
    complexity: float
    charge: float | None
    on_battery: bool
    hot: bool | None
    save_energy: bool
    losses: Sequence[float | None]


def feature_names(variants: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a feature vector's entries."""
    return (*GENERAL_FEATURES, *(f"loss {name}" for name in variants))


def hidden_columns(group: FeatureGroup | None, variants: Sequence[str]) -> np.ndarray:
    """Return `[features]` of bool: the features of a group; none of them for None."""
    names = _GROUPS[group]
    return np.array([name.split()[0] in names for name in feature_names(variants)])


def choice_names(variants: Sequence[str]) -> tuple[str, ...]:
    """Return what a learned policy chooses from: each variant, and `refuse`."""
    return (*variants, REFUSE)


def observation_vector(observation: Observation, variants: Sequence[str]) -> np.ndarray:
    """Return the features of an observation, `[features]` in float32."""
    base = observation.candidates[0]
    queued = observation.wait if observation.queued is None else observation.queued
    losses = {c.action.choice: c.loss for c in observation.candidates if c.action.kv_budget is None}
    return feature_vector(
        FeatureInputs(
            objectives=observation.objectives,
            wait=observation.wait,
            load=observation.demand,
            prefill=base.ttft - queued,
            tpot=base.tpot,
            complexity=observation.complexity,
            charge=observation.battery_charge,
            on_battery=bool(observation.on_battery),
            hot=observation.hot,
            save_energy=observation.save_energy,
            losses=[losses.get(variant) for variant in variants],
        )
    )


def feature_vector(inputs: FeatureInputs) -> np.ndarray:
    """Return features, `[features]` in float32.

    A missing reading is 0 and marked as missing; an unmeasured loss is `CLIP`.
    """
    wanted, charge, hot = inputs.objectives, inputs.charge, inputs.hot
    ttft = DEFAULT_TTFT if wanted.ttft is None else wanted.ttft
    tpot = DEFAULT_TPOT if wanted.tpot is None else wanted.tpot
    ratios = (inputs.wait / ttft, inputs.load, inputs.prefill / ttft, inputs.tpot / tpot)
    # Comparisons instead of min: the simulation calls this for every request.
    values = [ratio if ratio < CLIP else CLIP for ratio in ratios]
    values += (
        inputs.complexity,
        0.0 if charge is None else charge,
        charge is None,
        inputs.on_battery,
        bool(hot),
        hot is None,
        inputs.save_energy,
    )
    values += [loss if loss is not None and loss < CLIP else CLIP for loss in inputs.losses]
    return np.array(values, np.float32)


def open_choices(observation: Observation, variants: Sequence[str]) -> np.ndarray:
    """Return `[choices]` of bool: variants that are not blocked, and whether refusing is open."""
    free = {c.action.choice for c in observation.candidates if c.blocked is None}
    return np.array([*(name in free for name in variants), may_refuse(observation)])


def may_refuse(observation: Observation) -> bool:
    """Return whether the queue is too long for the request, if it was not accepted before.

    See `is_too_late`.
    """
    return not observation.accepted and is_too_late(
        observation.objectives, observation.wait, lambda: observation.rank
    )


def is_too_late(objectives: Objectives, wait: float, rank: Callable[[], float]) -> bool:
    """Return whether a queue of `wait` seconds is too long for a firm TTFT objective.

    Large requests are too late behind a shorter queue: in place of one, several small ones are in
    time. `rank` returns the request's size rank (0..1); it is only called where it matters.
    """
    ttft = objectives.ttft
    if not objectives.firm or ttft is None or wait <= MAX_WAIT_LARGEST * ttft:
        return False
    above_half = max(0.0, 2 * rank() - 1)
    return wait > (MAX_WAIT - (MAX_WAIT - MAX_WAIT_LARGEST) * above_half) * ttft


def largest_cache(observation: Observation, choice: str) -> Candidate:
    """Return the candidate of a choice (`Action.choice`) with the largest cache not blocked.

    If all are blocked, the one with the largest cache. If the request leaves no such choice because
    it names a reader, the first candidate.
    """
    own = [c for c in observation.candidates if c.action.choice == choice]
    free = [c for c in own if c.blocked is None]
    return (free or own or observation.candidates)[0]


def cheapest_action(observation: Observation) -> Action:
    """Return the open action of the least cost. It names what a refused request would have got."""
    free = [c for c in observation.candidates if c.blocked is None] or observation.candidates
    return min(free, key=lambda c: c.cost).action
