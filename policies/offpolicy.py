"""What another policy would have been worth on logged traffic, some of it left to chance.

Self-normalised inverse propensity scores (Swaminathan and Joachims 2015) and the doubly robust
estimate (Dudik et al. 2011, arXiv 1103.4601), with clipped weights. Both judge single decisions:
what a policy would have done to the queue behind a request is not in the log.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policies.explore import label_of
from policies.features import REFUSE
from policies.observation import Observation, Policy, read_observation
from pruners.data.readers import parse_json, read_raw_lines
from pruners.support.errors import UserError

_RESAMPLES = 1000


class LogError(UserError):
    """An audit log that cannot be judged from. One clear line."""


@dataclass(frozen=True, slots=True)
class LoggedDecision:
    """One decision, how likely it was, and what it was worth."""

    observation: Observation
    label: str
    propensity: float
    value: float


@dataclass(frozen=True, slots=True)
class OffPolicyEstimate:
    """The mean value of a request, with 95 % bootstrap intervals over decisions.

    `effective` is the number of decisions that the weights leave, `largest` the largest weight
    before clipping.
    """

    decisions: int
    snips: float
    snips_95: tuple[float, float]
    doubly_robust: float
    doubly_robust_95: tuple[float, float]
    effective: float
    largest: float


@dataclass(frozen=True, slots=True)
class DecisionLog:
    """The decisions of audit logs, and how many of their lines were torn and left out."""

    decisions: list[LoggedDecision]
    torn: int


def read_log(paths: Iterable[Path], lost: float = -0.5) -> DecisionLog:
    """The decisions of audit logs; pinned ones say nothing and are left out.

    A request that kept its objectives is worth exp(-loss), the loss as the shadow measured it or,
    where it did not, as it was predicted; another is worth `lost`. A line that a crash or a full
    disk has torn is counted and left out. Raises `LogError` or `ReadError`.
    """
    answers: list[tuple[str, dict[str, Any]]] = []
    measured: dict[str, float] = {}
    torn = 0
    for path in paths:
        whole = False
        for number, line in read_raw_lines(path):
            place = f"{path} line {number}"
            try:
                entry = parse_json(line.decode())
            except ValueError:
                torn += 1
                continue
            whole = True
            with _damage_named(place):
                if entry["kind"] == "shadow":
                    measured[entry["answer"]] = float(entry["kl"])
                elif entry["reason"] != "pinned":
                    answers.append((place, entry))
        if torn and not whole:
            raise LogError(f"{path} is no audit log: none of its lines can be read")
    decisions = []
    for place, entry in answers:
        with _damage_named(place):
            decisions.append(_logged(entry, measured.get(entry["answer"]), lost))
    return DecisionLog(decisions, torn)


@contextmanager
def _damage_named(place: str) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise LogError(f"{place} is not of this version's audit log: no {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise LogError(f"{place} is not of an audit log: {error}") from error


def _logged(entry: dict[str, Any], measured: float | None, lost: float) -> LoggedDecision:
    observation, outcome = read_observation(entry["observation"]), entry["outcome"]
    refused = entry["reason"] in ("late", "floor")
    label = REFUSE if refused else str(entry["action"])
    wanted, value = observation.objectives, lost
    kept = outcome["finish_reason"] in ("stop", "length") and all(
        bound is None or (outcome[name] is not None and outcome[name] <= bound)
        for name, bound in (
            ("ttft", wanted.ttft),
            ("tpot", wanted.tpot if outcome.get("output_tokens", 0) > 1 else None),
            ("seconds", wanted.deadline),
        )
    )
    if kept:
        loss = entry["predicted"]["loss"] if measured is None else measured
        value = 0.0 if loss is None else math.exp(-float(loss))  # as `_model` has it
    propensity = float(entry["propensities"][label])
    if not 0 < propensity <= 1:
        raise ValueError(f"a propensity of {propensity:g}")
    return LoggedDecision(observation, label, propensity, value)


def estimate_value(
    logged: Sequence[LoggedDecision],
    policy: Policy,
    lost: float = -0.5,
    clip: float = 20.0,
    seed: int = 0,
) -> OffPolicyEstimate:
    """What `policy` would have been worth. Raises `LogError` if it never did what was logged.

    The doubly robust estimate's model is the controller's own predictions.
    """
    labels = [label_of(*policy.choose(one.observation)) for one in logged]
    raw = np.array(
        [(label == one.label) / one.propensity for label, one in zip(labels, logged, strict=True)]
    )
    if not raw.any():
        raise LogError("the log has no decision that this policy would make; log with chance")
    weights = np.minimum(raw, clip)
    value = np.array([one.value for one in logged])
    would = np.array([_model(one, label, lost) for one, label in zip(logged, labels, strict=True)])
    did = np.array([_model(one, one.label, lost) for one in logged])
    robust = would + weights * (value - did)
    drawn = np.random.default_rng(seed).integers(len(logged), size=(_RESAMPLES, len(logged)))
    totals = weights[drawn].sum(1)
    snips = (weights * value)[drawn].sum(1)[totals > 0] / totals[totals > 0]
    return OffPolicyEstimate(
        decisions=len(logged),
        snips=float(weights @ value / weights.sum()),
        snips_95=_interval(snips),
        doubly_robust=float(robust.mean()),
        doubly_robust_95=_interval(robust[drawn].mean(1)),
        effective=float(weights.sum() ** 2 / (weights**2).sum()),
        largest=float(raw.max()),
    )


def _model(one: LoggedDecision, label: str, lost: float) -> float:
    """What was predicted of an action, as a value."""
    if label == REFUSE:
        return lost
    found = next((c for c in one.observation.candidates if c.action.label == label), None)
    if found is None or not found.keeps(one.observation.objectives):
        return lost
    return 0.0 if found.loss is None else math.exp(-found.loss)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
